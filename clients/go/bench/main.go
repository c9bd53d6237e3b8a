// The bench command streams increments with one producer for some seconds, and prints how many
// were acknowledged a second:
//
//	go run ./bench --target 127.0.0.1:7411 --seconds 5
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/tallyboard/tallyboard/clients/go/tallyboard"
)

// patience is how long the last batches may take.
const patience = 30 * time.Second

type plan struct {
	target   string
	tenant   string
	counters int
	updates  int
	window   int
	seconds  float64
}

func main() {
	var chosen plan
	flag.StringVar(&chosen.target, "target", "127.0.0.1:7411", "`host:port` of the service")
	flag.StringVar(&chosen.tenant, "tenant", "bench", "whose counters they are")
	flag.IntVar(&chosen.counters, "counters", 1_000, "different counters, all in turn")
	flag.IntVar(&chosen.updates, "updates", tallyboard.MaxUpdates, "updates in a batch")
	flag.IntVar(&chosen.window, "window", 64, "batches that may be unacknowledged")
	flag.Float64Var(&chosen.seconds, "seconds", 5, "how long to send, at most 600")
	flag.Parse()
	if chosen.counters < 1 || chosen.updates < 1 || chosen.seconds <= 0 || chosen.seconds > 600 {
		flag.Usage()
		os.Exit(2)
	}
	if err := measure(chosen); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func measure(chosen plan) (err error) {
	conn, err := tallyboard.Dial(chosen.target, tallyboard.WithTenant(chosen.tenant))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	producer, err := tallyboard.NewProducer(conn, tallyboard.ProducerOptions{Window: chosen.window})
	if err != nil {
		return err
	}
	batches := batchesOf(chosen)
	deltas := make([]int64, chosen.updates)
	for index := range deltas {
		deltas[index] = int64(1 + index%7)
	}

	started := time.Now()
	length := time.Duration(chosen.seconds * float64(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), length+patience)
	defer cancel()
	sent := 0
	for ; time.Since(started) < length && err == nil; sent++ {
		_, err = producer.Send(ctx, batches[sent%len(batches)], deltas)
	}
	if err = errors.Join(err, producer.Close(ctx)); err != nil {
		return err
	}
	elapsed := time.Since(started).Seconds()
	updates := float64(producer.Acknowledged())*float64(chosen.updates) - float64(producer.Failed())
	fmt.Printf("%.0f updates/s acknowledged: %.0f in %.2f s, %d counters, %d updates a batch\n",
		updates/elapsed, updates, elapsed, chosen.counters, chosen.updates)
	return nil
}

// batchesOf gives the names of batches that, one after the other, go through all counters evenly.
func batchesOf(chosen plan) [][]string {
	names := make([]string, chosen.counters)
	for index := range names {
		names[index] = fmt.Sprintf("bench:%d", index)
	}
	count := (chosen.counters + chosen.updates - 1) / chosen.updates
	batches := make([][]string, count)
	for index := range batches {
		batch := make([]string, chosen.updates)
		for at := range batch {
			batch[at] = names[(index*chosen.updates+at)%len(names)]
		}
		batches[index] = batch
	}
	return batches
}
