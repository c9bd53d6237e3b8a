package tallyboard

import (
	"slices"

	"google.golang.org/grpc/status"

	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

// window has the batches of a producer that are not acknowledged, the oldest first, with sequences
// that follow each other. It neither waits nor locks: the producer's mutex guards it.
type window struct {
	producer string
	size     int
	last     uint64 // the sequence of the newest batch
	batches  []*tallyboardv1.StreamIncrementsRequest
}

func (w *window) isFull() bool  { return len(w.batches) >= w.size }
func (w *window) isEmpty() bool { return len(w.batches) == 0 }

// acknowledged is the sequence through which every batch is acknowledged.
func (w *window) acknowledged() uint64 { return w.last - uint64(len(w.batches)) }

// add takes a batch, with copies of the lists: it may have to be sent again as it is now.
func (w *window) add(counters []string, deltas []int64) uint64 {
	w.last++
	w.batches = append(w.batches, &tallyboardv1.StreamIncrementsRequest{
		ProducerId: w.producer,
		Sequence:   w.last,
		Counters:   slices.Clone(counters),
		Deltas:     slices.Clone(deltas),
	})
	return w.last
}

// after is the first batch with a sequence above the given one, or nil.
func (w *window) after(sequence uint64) *tallyboardv1.StreamIncrementsRequest {
	if sequence >= w.last || w.isEmpty() {
		return nil
	}
	return w.batches[max(sequence, w.acknowledged())-w.acknowledged()]
}

// covered is the batches that an acknowledgement is for.
func (w *window) covered(sequence uint64) []*tallyboardv1.StreamIncrementsRequest {
	return w.batches[:max(min(sequence, w.last), w.acknowledged())-w.acknowledged()]
}

// drop removes the first batches, and gives their memory back.
func (w *window) drop(count int) {
	w.batches = slices.Delete(w.batches, 0, count)
}

// failuresIn is what the answer says could not count in the batches that it acknowledges.
func failuresIn(
	batches []*tallyboardv1.StreamIncrementsRequest, answer *tallyboardv1.StreamIncrementsResponse,
) []Failure {
	if len(batches) == 0 {
		return nil
	}
	var found []Failure
	first := batches[0].GetSequence()
	updates := map[uint64]map[string]int{}
	for _, failure := range answer.GetFailures() {
		sequence, counter := failure.GetSequence(), failure.GetCounter()
		index := sequence - first // of a sequence before the first it wraps around
		if index >= uint64(len(batches)) {
			continue
		}
		if updates[sequence] == nil {
			updates[sequence] = updatesOf(batches[index])
		}
		found = append(found, Failure{
			Sequence: sequence,
			Counter:  counter,
			Updates:  updates[sequence][counter],
			Err:      status.ErrorProto(failure.GetStatus()),
		})
	}
	return found
}

// updatesOf is how many updates of a batch each counter has.
func updatesOf(batch *tallyboardv1.StreamIncrementsRequest) map[string]int {
	counters := batch.GetCounters()
	if len(counters) == 1 {
		return map[string]int{counters[0]: len(batch.GetDeltas())}
	}
	updates := make(map[string]int, len(counters))
	for _, counter := range counters {
		updates[counter]++
	}
	return updates
}
