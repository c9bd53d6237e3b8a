package tallyboard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

var errAway = status.Error(codes.Unavailable, "the worker is gone")

// breakAfter takes batches, acknowledges the first of them, and breaks the stream.
func breakAfter(taken, acknowledged int, err error) func(*service, serverStream) error {
	return func(s *service, stream serverStream) error {
		for index := range taken {
			batch, failed := s.take(stream)
			if failed != nil {
				return failed
			}
			if index < acknowledged {
				if failed := s.acknowledge(stream, batch.GetSequence()); failed != nil {
					return failed
				}
			}
		}
		return err
	}
}

// swallow takes batches until the stream is broken from outside, and acknowledges none.
func swallow(s *service, stream serverStream) error {
	for {
		if _, err := s.take(stream); err != nil {
			return err
		}
	}
}

// refuse ends the stream at its first batch.
func refuse(err error) func(*service, serverStream) error { return breakAfter(1, 0, err) }

func send(t *testing.T, producer *Producer, counter string, deltas ...int64) uint64 {
	t.Helper()
	sequence, err := producer.Send(inTime(t), []string{counter}, deltas)
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

func closeInTime(t *testing.T, producer *Producer) {
	t.Helper()
	if err := producer.Close(inTime(t)); err != nil {
		t.Fatal(err)
	}
}

func TestBatchesAreNumberedAndCounted(t *testing.T) {
	service := start(t)
	producer := service.produce(ProducerOptions{})
	if producer.Acknowledged() != 0 || producer.Pending() != 0 || producer.Err() != nil {
		t.Error("a new producer has a past")
	}
	names := []string{"post:42", "post:43"}
	if sequence, err := producer.Send(inTime(t), names, []int64{1, 2}); sequence != 1 || err != nil {
		t.Errorf("the first batch is %d, %v", sequence, err)
	}
	if sequence := send(t, producer, "post:42", 3, 4); sequence != 2 {
		t.Errorf("the second batch is %d", sequence)
	}
	if err := producer.Flush(inTime(t)); err != nil {
		t.Fatal(err)
	}
	if producer.Acknowledged() != 2 || producer.Pending() != 0 {
		t.Errorf("%d acknowledged, %d pending", producer.Acknowledged(), producer.Pending())
	}
	closeInTime(t, producer)
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": 8, "post:43": 2})
	service.expectStreams(1)
	if !errors.Is(producer.Err(), ErrClosed) {
		t.Errorf("a closed producer has the error %v", producer.Err())
	}
	if _, err := producer.Send(inTime(t), names, []int64{1, 2}); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed producer took a batch: %v", err)
	}
}

func TestAStreamStaysOpenBetweenBatches(t *testing.T) {
	service := start(t)
	service.increment = func(context.Context, *tallyboardv1.IncrementRequest) error { return nil }
	conn := service.dial()
	producer, err := NewProducer(conn, ProducerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		send(t, producer, "post:42", 1)
		if err := producer.Flush(inTime(t)); err != nil {
			t.Fatal(err)
		}
		// Behind an answer over the same connection, a stream that was ended would have been seen.
		request := &tallyboardv1.IncrementRequest{Counter: "post:43", Delta: 1}
		client := tallyboardv1.NewCounterServiceClient(conn)
		if _, err := client.Increment(inTime(t), request); err != nil {
			t.Fatal(err)
		}
	}
	service.expectStreams(1)
	closeInTime(t, producer)
}

func TestEachBatchCountsOnceWhateverBreaks(t *testing.T) {
	cut := func(s *service, stream serverStream) error {
		defer s.cut()
		return breakAfter(4, 1, errAway)(s, stream)
	}
	service := start(t,
		breakAfter(0, 0, errAway), breakAfter(3, 0, errAway), cut, breakAfter(5, 2, errAway),
		breakAfter(2, 2, nil), breakAfter(4, 3, status.Error(codes.Internal, "a fault")), cut)
	service.window = 8
	producer := service.produce(ProducerOptions{Window: 8})
	var expected int64
	for index := range int64(100) {
		send(t, producer, "post:42", index+1)
		expected += index + 1
	}
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": expected})
	service.expectStreams(8)
	if producer.Acknowledged() != 100 || producer.Pending() != 0 {
		t.Errorf("%d acknowledged, %d pending", producer.Acknowledged(), producer.Pending())
	}
}

func TestGoroutinesShareAProducer(t *testing.T) {
	service := start(t, breakAfter(7, 3, errAway), breakAfter(4, 0, errAway))
	service.window = 4
	producer := service.produce(ProducerOptions{Window: 4})
	var senders sync.WaitGroup
	for index := range 8 {
		senders.Go(func() {
			for range 25 {
				if _, err := producer.Send(
					inTime(t), []string{fmt.Sprintf("post:%d", index)}, []int64{1},
				); err != nil {
					t.Error(err)
				}
			}
			if err := producer.Flush(inTime(t)); err != nil {
				t.Error(err)
			}
		})
	}
	senders.Wait()
	closeInTime(t, producer)
	expected := map[string]int64{}
	for index := range 8 {
		expected[fmt.Sprintf("post:%d", index)] = 25
	}
	service.expectTotals(expected)
}

func TestTheCallersListsMayChangeAfterSend(t *testing.T) {
	service := start(t, breakAfter(1, 0, errAway))
	producer := service.produce(ProducerOptions{})
	names, deltas := []string{"post:42"}, []int64{5}
	if _, err := producer.Send(inTime(t), names, deltas); err != nil {
		t.Fatal(err)
	}
	names[0], deltas[0] = "other", 7
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": 5})
}

func TestSendWaitsForRoom(t *testing.T) {
	release := make(chan struct{})
	service := start(t, func(s *service, stream serverStream) error {
		for range 2 {
			if _, err := s.take(stream); err != nil {
				return err
			}
		}
		<-release
		if err := s.acknowledge(stream, 1); err != nil {
			return err
		}
		return s.count(stream)
	})
	service.window = 2
	producer := service.produce(ProducerOptions{Window: 2})
	send(t, producer, "post:42", 1)
	send(t, producer, "post:42", 2)

	over, cancel := context.WithTimeout(inTime(t), 20*time.Millisecond)
	defer cancel()
	_, err := producer.Send(over, []string{"post:42"}, []int64{4})
	if !errors.Is(err, context.DeadlineExceeded) || producer.Pending() != 2 {
		t.Errorf("a batch without room: %v, %d pending", err, producer.Pending())
	}
	go close(release)
	if sequence := send(t, producer, "post:42", 4); sequence != 3 {
		t.Errorf("the batch that got room is %d", sequence)
	}
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": 7})
	service.expectStreams(1)
}

func TestAStreamThatStallsIsReplaced(t *testing.T) {
	service := start(t, swallow)
	producer := service.produce(ProducerOptions{StallTimeout: 30 * time.Millisecond})
	send(t, producer, "post:42", 1)
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": 1})
	service.expectStreams(2)
}

func TestAStreamThatStallsAfterAnAcknowledgementIsReplaced(t *testing.T) {
	service := start(t, func(s *service, stream serverStream) error {
		return errors.Join(breakAfter(1, 1, nil)(s, stream), swallow(s, stream))
	})
	producer := service.produce(ProducerOptions{StallTimeout: 200 * time.Millisecond})
	send(t, producer, "post:42", 1)
	if err := producer.Flush(inTime(t)); err != nil {
		t.Fatal(err)
	}
	send(t, producer, "post:42", 2)
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": 3})
	service.expectStreams(2)
}

func TestTheClockOfAStallStandsWhileNothingIsPending(t *testing.T) {
	service := start(t)
	producer := service.produce(ProducerOptions{})
	send(t, producer, "post:42", 1)
	if err := producer.Flush(inTime(t)); err != nil {
		t.Fatal(err)
	}
	producer.mu.Lock()
	isRunning := producer.stall.Stop()
	producer.mu.Unlock()
	if isRunning {
		t.Error("the clock runs with nothing pending")
	}
	closeInTime(t, producer)
}

func TestAnIdleStreamIsClosedAndAnotherOpenedForMore(t *testing.T) {
	service := start(t)
	producer := service.produce(ProducerOptions{IdleTimeout: 10 * time.Millisecond})
	send(t, producer, "post:42", 1)
	service.until("the end of an idle stream", func() bool { return service.ended == 1 })
	if producer.Err() != nil {
		t.Errorf("an idle producer has the error %v", producer.Err())
	}
	send(t, producer, "post:42", 2)
	closeInTime(t, producer)
	service.expectTotals(map[string]int64{"post:42": 3})
}

func TestAnErrorThatWouldComeAgainEndsTheProducer(t *testing.T) {
	refusals := map[string]error{"MESSAGE_TOO_LARGE": failing(codes.ResourceExhausted,
		&errdetails.ErrorInfo{Reason: "MESSAGE_TOO_LARGE", Domain: Domain})}
	for _, code := range []codes.Code{
		codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented,
		codes.Unauthenticated, codes.PermissionDenied,
	} {
		refusals[code.String()] = failing(code, &errdetails.ErrorInfo{Reason: "X", Domain: Domain})
	}
	for name, refusal := range refusals {
		t.Run(name, func(t *testing.T) {
			service := start(t, refuse(refusal))
			producer := service.produce(ProducerOptions{})
			send(t, producer, "post:42", 1)
			flushed := producer.Flush(inTime(t))
			_, sent := producer.Send(inTime(t), []string{"post:42"}, []int64{1})
			for _, err := range []error{flushed, sent, producer.Err(), producer.Close(inTime(t))} {
				if status.Code(err) != status.Code(refusal) || ReasonOf(err) != ReasonOf(refusal) {
					t.Errorf("%v instead of %v", err, refusal)
				}
			}
			service.expectStreams(1)
		})
	}
}

func TestRetryInfoIsHonoured(t *testing.T) {
	const asked = 150 * time.Millisecond
	var refused, opened time.Time
	service := start(t,
		func(s *service, stream serverStream) error {
			refused = time.Now()
			return failing(codes.Unavailable,
				&errdetails.RetryInfo{RetryDelay: durationpb.New(asked)})
		},
		func(s *service, stream serverStream) error {
			opened = time.Now()
			return s.count(stream)
		})
	producer := service.produce(ProducerOptions{})
	send(t, producer, "post:42", 1)
	closeInTime(t, producer)
	if waited := opened.Sub(refused); waited < asked {
		t.Errorf("the next stream came after %v", waited)
	}
}

// failure is what the service says of a counter that could not count.
func failure(sequence uint64, counter string) *tallyboardv1.SequenceFailure {
	refused := status.Convert(failing(codes.OutOfRange,
		&errdetails.ErrorInfo{Reason: "COUNTER_OUT_OF_RANGE", Domain: Domain}))
	return &tallyboardv1.SequenceFailure{
		Sequence: sequence, Counter: counter, Status: refused.Proto(),
	}
}

func TestWhatCanNotCountIsReported(t *testing.T) {
	service := start(t, func(s *service, stream serverStream) error {
		for range 2 {
			if _, err := s.take(stream); err != nil {
				return err
			}
		}
		// Of those not acknowledged yet, and of others, nothing is to be told.
		return errors.Join(
			s.acknowledge(stream, 1, failure(1, "full"), failure(2, "post:42"), failure(0, "x")),
			s.acknowledge(stream, 2, failure(2, "post:42"), failure(1, "full")),
			s.count(stream))
	})
	var told []Failure
	producer := service.produce(ProducerOptions{OnFailure: func(failure Failure) {
		told = append(told, failure)
	}})
	names := []string{"full", "post:42", "full"}
	if _, err := producer.Send(inTime(t), names, []int64{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	send(t, producer, "post:42", 4, 5, 6)
	if err := producer.Flush(inTime(t)); err != nil {
		t.Fatal(err)
	}
	for _, found := range [][]Failure{told, producer.Failures()} {
		if len(found) != 2 || producer.Failed() != 5 {
			t.Fatalf("%d updates failed: %v", producer.Failed(), found)
		}
		one, other := found[0], found[1]
		if one.Sequence != 1 || one.Counter != "full" || one.Updates != 2 ||
			ReasonOf(one.Err) != "COUNTER_OUT_OF_RANGE" {
			t.Errorf("the first failure is %+v", one)
		}
		if other.Sequence != 2 || other.Counter != "post:42" || other.Updates != 3 {
			t.Errorf("the second failure is %+v", other)
		}
	}
	closeInTime(t, producer)
}

func TestTheNewestFailuresAreKept(t *testing.T) {
	const count = keptFailures + 200
	names, deltas := make([]string, count), make([]int64, count)
	failures := make([]*tallyboardv1.SequenceFailure, count)
	for index := range names {
		names[index], deltas[index] = fmt.Sprintf("full:%d", index), 1
		failures[index] = failure(1, names[index])
	}
	service := start(t, func(s *service, stream serverStream) error {
		if _, err := s.take(stream); err != nil {
			return err
		}
		return errors.Join(s.acknowledge(stream, 1, failures...), s.count(stream))
	})
	producer := service.produce(ProducerOptions{})
	if _, err := producer.Send(inTime(t), names, deltas); err != nil {
		t.Fatal(err)
	}
	closeInTime(t, producer)
	kept := producer.Failures()
	if len(kept) != keptFailures || kept[0].Counter != "full:200" || producer.Failed() != count {
		t.Errorf("%d are kept from %q on, of %d", len(kept), kept[0].Counter, producer.Failed())
	}
}

func TestFlushAndCloseGiveUpWithTheirContext(t *testing.T) {
	service := start(t, refuse(errAway), swallow)
	producer := service.produce(ProducerOptions{})
	send(t, producer, "post:42", 1)
	service.until("the second stream", func() bool { return service.opened == 2 })

	over, cancel := context.WithCancel(context.Background())
	cancel()
	flushed := producer.Flush(over)
	if !errors.Is(flushed, context.Canceled) || !errors.Is(flushed, errAway) {
		t.Errorf("a flush that was cut short: %v", flushed)
	}
	if producer.Err() != nil || producer.Pending() != 1 {
		t.Errorf("it left %d pending, %v", producer.Pending(), producer.Err())
	}
	late, stop := context.WithTimeout(inTime(t), time.Nanosecond)
	defer stop()
	closed := producer.Close(late)
	if !errors.Is(closed, context.DeadlineExceeded) || errors.Is(closed, context.Canceled) ||
		!errors.Is(closed, errAway) {
		t.Errorf("a close that was cut short: %v", closed)
	}
	service.until("the end of the stream", func() bool { return service.ended == 2 })
	if err := producer.Flush(inTime(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("a flush after it: %v", err)
	}
}

func TestCloseFreesWhoWaitsForRoom(t *testing.T) {
	service := start(t, swallow)
	producer := service.produce(ProducerOptions{Window: 1})
	send(t, producer, "post:42", 1)
	sent := make(chan error, 1)
	go func() {
		_, err := producer.Send(inTime(t), []string{"post:42"}, []int64{2})
		sent <- err
	}()
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := producer.Close(over); !errors.Is(err, context.Canceled) {
		t.Errorf("the close: %v", err)
	}
	if err := <-sent; !errors.Is(err, ErrClosed) {
		t.Errorf("the send: %v", err)
	}
}

func TestAClosedConnectionEndsTheProducer(t *testing.T) {
	service := start(t, swallow)
	conn := service.dial()
	producer, err := NewProducer(conn, ProducerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	send(t, producer, "post:42", 1)
	service.until("the stream", func() bool { return service.opened == 1 })
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := producer.Flush(inTime(t)); !errors.Is(err, errConnectionClosed) {
		t.Errorf("the flush: %v", err)
	}
	if err := producer.Close(inTime(t)); !errors.Is(err, errConnectionClosed) {
		t.Errorf("the close: %v", err)
	}
}

func TestASuccessorGoesOnWithTheSequence(t *testing.T) {
	var ids []string
	service := start(t, func(s *service, stream serverStream) error {
		batch, err := s.take(stream)
		if err != nil {
			return err
		}
		ids = append(ids, batch.GetProducerId())
		return errors.Join(s.acknowledge(stream, batch.GetSequence()), s.count(stream))
	})
	service.acked = 41
	producer := service.produce(ProducerOptions{ID: "ann", FirstSequence: 42})
	if producer.Acknowledged() != 41 {
		t.Errorf("%d is acknowledged at the start", producer.Acknowledged())
	}
	if sequence := send(t, producer, "post:42", 1); sequence != 42 {
		t.Errorf("the first batch is %d", sequence)
	}
	closeInTime(t, producer)
	if producer.ID() != "ann" || !slices.Equal(ids, []string{"ann"}) {
		t.Errorf("the ids are %q", ids)
	}
}

func TestABatchThatWouldSpoilTheStreamIsNotTaken(t *testing.T) {
	service := start(t)
	producer := service.produce(ProducerOptions{})
	long := strings.Repeat("x", maxNameBytes+1)
	for _, each := range []struct {
		counters      []string
		deltas        []int64
		reason, field string
	}{
		{nil, nil, "FIELD_INVALID", "deltas"},
		{[]string{"a"}, nil, "FIELD_INVALID", "deltas"},
		{nil, []int64{1}, "FIELD_INVALID", "counters"},
		{[]string{"a", "b"}, []int64{1}, "FIELD_INVALID", "counters"},
		{[]string{"a"}, make([]int64, MaxUpdates+1), "TOO_MANY_ITEMS", "deltas"},
		{[]string{"a", ""}, []int64{1, 2}, "NAME_INVALID", "counters[1]"},
		{[]string{long}, []int64{1}, "NAME_INVALID", "counters[0]"},
		{[]string{"a\xff"}, []int64{1}, "NAME_INVALID", "counters[0]"},
		{[]string{"a"}, []int64{1, 0}, "DELTA_ZERO", "deltas[1]"},
	} {
		_, err := producer.Send(inTime(t), each.counters, each.deltas)
		violations := ViolationsOf(err)
		if status.Code(err) != codes.InvalidArgument || ReasonOf(err) != each.reason ||
			len(violations) != 1 || violations[0].Field != each.field {
			t.Errorf("%v instead of %s of %s", err, each.reason, each.field)
		}
	}
	closeInTime(t, producer)
	service.expectStreams(0)
}

func TestProducersHaveLimits(t *testing.T) {
	for _, options := range []ProducerOptions{
		{Window: -1}, {Window: MaxWindow + 1}, {StallTimeout: -1}, {IdleTimeout: -1},
		{ID: strings.Repeat("x", maxNameBytes+1)}, {ID: "\xff"},
	} {
		if _, err := NewProducer(nil, options); err == nil {
			t.Errorf("%+v was taken", options)
		}
	}
}
