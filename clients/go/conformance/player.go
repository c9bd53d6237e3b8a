package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/tallyboard/tallyboard/clients/go/tallyboard"
)

const (
	deadline        = 15 * time.Second
	produceDeadline = 60 * time.Second
	stallTimeout    = 5 * time.Second
)

// A player plays cases against a service: over a connection as gRPC makes it, or over that of the
// library.
type player struct {
	plain   *grpc.ClientConn
	helper  *tallyboard.Conn
	control string
}

func newPlayer(target, control string) (*player, error) {
	plain, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	helper, err := tallyboard.Dial(target)
	if err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	return &player{plain, helper, control}, nil
}

func (p *player) close() {
	_ = p.plain.Close()
	_ = p.helper.Close()
}

// play gives what is not as expected, or nothing.
func (p *player) play(each conformanceCase) string {
	run := &run{
		player:    p,
		tenant:    fmt.Sprintf("go-%s-%s", each.Name, tallyboard.NewRequestID()[:8]),
		variables: map[string]string{},
	}
	for index, raw := range each.Steps {
		step, err := filled(raw, run.variable)
		if err == nil {
			err = run.play(step)
		}
		if err != nil {
			return fmt.Sprintf("step %d: %v", index+1, err)
		}
	}
	return ""
}

// A run is one case under way.
type run struct {
	*player
	tenant    string
	variables map[string]string
}

// variable makes up an id that is not known yet. A name that was never saved stays empty.
func (r *run) variable(name string) string {
	if _, known := r.variables[name]; !known && strings.HasPrefix(name, "id:") {
		r.variables[name] = tallyboard.NewRequestID()
	}
	return r.variables[name]
}

func (r *run) play(step *step) error {
	switch {
	case step.Control != nil:
		return r.arm(step)
	case step.Produce != nil:
		return r.produce(step)
	case step.Stream != "":
		return r.stream(step)
	}
	return r.call(step)
}

func (r *run) arm(step *step) error {
	wish := map[string]any{"tenant": r.tenant}
	for name, value := range step.Control {
		wish[name] = value
	}
	body, err := json.Marshal(wish)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: deadline}
	answer, err := client.Post(r.control+"/arm", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusNoContent {
		err = fmt.Errorf("the control answered %s", answer.Status)
	}
	return errors.Join(err, answer.Body.Close())
}

func (r *run) produce(step *step) error {
	ctx, cancel := context.WithTimeout(context.Background(), produceDeadline)
	defer cancel()
	producer, err := tallyboard.NewProducer(r.helper, tallyboard.ProducerOptions{
		ID: step.Produce.ProducerID, Tenant: r.tenant, StallTimeout: stallTimeout,
	})
	if err != nil {
		return err
	}
	sent := r.sendAll(ctx, producer, step)
	if err := errors.Join(sent, producer.Close(ctx)); err != nil {
		return err
	}
	return expect(step.Acknowledged, producer.Acknowledged(), "acknowledged")
}

func (r *run) sendAll(ctx context.Context, producer *tallyboard.Producer, step *step) error {
	for _, batch := range step.Produce.Batches {
		deltas := make([]int64, len(batch.Deltas))
		for index, delta := range batch.Deltas {
			var err error
			if deltas[index], err = delta.Int64(); err != nil {
				return err
			}
		}
		if _, err := producer.Send(ctx, batch.Counters, deltas); err != nil {
			return err
		}
	}
	return producer.Flush(ctx)
}

// context is that of a call, with the step's deadline and tenant.
func (r *run) context(step *step) (context.Context, context.CancelFunc) {
	limit, tenant := deadline, r.tenant
	if step.DeadlineMS > 0 {
		limit = time.Duration(step.DeadlineMS) * time.Millisecond
	}
	if step.Tenant != nil {
		tenant = *step.Tenant
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), tallyboard.TenantKey, tenant)
	return context.WithTimeout(ctx, limit)
}

func (r *run) connection(step *step) grpc.ClientConnInterface {
	if step.With == "helper" {
		return r.helper
	}
	return r.plain
}
