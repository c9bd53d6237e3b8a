package tallyboard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

const (
	defaultWindow       = 64
	defaultStallTimeout = 30 * time.Second
	defaultIdleTimeout  = 60 * time.Second
	keptFailures        = 1_000
)

// ErrClosed is the error of a [Producer] that was closed.
var ErrClosed = errors.New("tallyboard: the producer is closed")

// Failure says which updates of a batch could not count. The other updates of the batch did.
type Failure struct {
	// Sequence is the number of the batch, as Send gave it.
	Sequence uint64
	// Counter is the name of the counter.
	Counter string
	// Updates is how many updates it is about: all of that counter in that batch.
	Updates int
	// Err is the error of the service; [ReasonOf] reads its reason.
	Err error
}

// ProducerOptions are choices for [NewProducer]. What is left at its zero value has a default.
type ProducerOptions struct {
	// ID is a name that no other producer of the tenant uses at the same time: 1 to 256 bytes of
	// UTF-8 without control characters. The default is a random UUID. An id that was used before
	// needs a FirstSequence.
	ID string
	// FirstSequence is the number of the first batch; the default is 1. To go on for a producer
	// that was lost with its process: that of its oldest batch without an acknowledgement, followed
	// by the same batches through Send.
	FirstSequence uint64
	// Tenant is whose counters they are, 1 to 256 printable ASCII characters; the default is the
	// tenant of the connection.
	Tenant string
	// Window is how many batches may be unacknowledged, 1 to [MaxWindow]; the default is 64. It
	// bounds the memory: each batch is kept until it is acknowledged.
	Window int
	// StallTimeout is the time without an acknowledgement, while batches are unacknowledged, after
	// which the stream counts as broken; the default is 30 s.
	StallTimeout time.Duration
	// IdleTimeout is the time without work after which the stream is closed until there is some;
	// the default is 60 s. An open stream takes one of the places that the service has for them.
	IdleTimeout time.Duration
	// OnFailure is called with each failure, one after the other, before the failure's batch counts
	// as acknowledged. It must be quick, because acknowledgements wait for it, and must not call
	// Send, Flush or Close of its producer, which wait for acknowledgements.
	OnFailure func(Failure)
}

// Producer counts in batches over one stream, each batch exactly once, whatever breaks on the way.
// It numbers the batches and keeps each one until the service has acknowledged it; when a stream
// breaks it opens another and sends the same batches again, which the service recognises. An
// acknowledged batch is as durable as the service is configured to make it.
//
// Any number of goroutines may use a Producer at the same time. It has goroutines of its own, until
// Close returns or the service refuses it for good: one that opens streams and sends, and, while a
// stream is open, one that receives and calls OnFailure.
type Producer struct {
	client       tallyboardv1.CounterServiceClient
	id           string
	tenant       string
	stallTimeout time.Duration
	idleTimeout  time.Duration
	onFailure    func(Failure)

	life context.Context // of run and of its streams
	stop context.CancelFunc
	done chan struct{} // closed when run has returned

	mu       sync.Mutex    // guards everything below
	changed  chan struct{} // closed, and replaced, when somebody may be waiting for a change
	window   window
	backoff  waits
	stall    *time.Timer // breaks the open stream; nil while there is none
	failures []Failure   // the newest, oldest first
	failed   uint64
	broken   error // what broke the last stream, until something is acknowledged
	closing  bool
	err      error // why nothing is sent any more; nil while something may be
}

// NewProducer makes a producer on a connection: a [Conn] or any other of gRPC's. Close it before
// the connection. A stream is opened with the first batch.
//
// NewProducer fails if an option is outside its limits; a tenant with INVALID_ARGUMENT and the
// reason TENANT_INVALID.
func NewProducer(
	connection grpc.ClientConnInterface, options ProducerOptions,
) (*Producer, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	producer := &Producer{
		client:       tallyboardv1.NewCounterServiceClient(connection),
		id:           options.ID,
		tenant:       options.Tenant,
		stallTimeout: options.StallTimeout,
		idleTimeout:  options.IdleTimeout,
		onFailure:    options.OnFailure,
		life:         life,
		stop:         stop,
		done:         make(chan struct{}),
		changed:      make(chan struct{}),
		window: window{
			producer: options.ID, size: options.Window, last: options.FirstSequence - 1,
		},
	}
	go producer.run()
	return producer, nil
}

// complete puts the defaults in, and checks the limits.
func (o *ProducerOptions) complete() error {
	if o.ID == "" {
		o.ID = NewRequestID()
	}
	o.FirstSequence = max(o.FirstSequence, 1)
	orDefault(&o.Window, defaultWindow)
	orDefault(&o.StallTimeout, defaultStallTimeout)
	orDefault(&o.IdleTimeout, defaultIdleTimeout)
	if wrong := wrongName(o.ID); wrong != "" {
		return fmt.Errorf("tallyboard: the producer's id %s", wrong)
	}
	if err := checkTenant(o.Tenant); err != nil {
		return err
	}
	if o.Window < 1 || o.Window > MaxWindow {
		return fmt.Errorf("tallyboard: the window must be from 1 to %d, not %d", MaxWindow, o.Window)
	}
	if o.StallTimeout < 0 || o.IdleTimeout < 0 {
		return errors.New("tallyboard: a timeout must not be negative")
	}
	return nil
}

func orDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

// ID gives the producer's id, which its successor in another process would need.
func (p *Producer) ID() string { return p.id }

// Send takes one batch, adding deltas[i] to counters[i], and gives its sequence. One counter may
// stand for all deltas. The lists are copied. It does not wait for the acknowledgement, but while
// the window is full it waits for room until ctx is done.
//
// counters are names of 1 to 256 bytes of UTF-8 without control characters; deltas are 1 to
// [MaxUpdates] numbers other than 0.
//
// With an error the batch was not taken: INVALID_ARGUMENT if it can't be sent (see [ReasonOf] and
// [ViolationsOf]), ctx's error if there was no room in time, [ErrClosed], or what Err gives if the
// service has refused the producer for good.
func (p *Producer) Send(
	ctx context.Context, counters []string, deltas []int64,
) (sequence uint64, err error) {
	if err := checkBatch(counters, deltas); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.wait(ctx, func() bool { return p.err != nil || p.closing || !p.window.isFull() })
	switch {
	case p.err != nil:
		return 0, p.err
	case p.closing:
		return 0, ErrClosed
	case err != nil:
		return 0, p.late("there was no room for a batch", err)
	}
	if p.window.isEmpty() && p.stall != nil {
		p.stall.Reset(p.stallTimeout)
	}
	sequence = p.window.add(counters, deltas)
	p.notify()
	return sequence, nil
}

// Flush waits until every batch that was taken before is acknowledged.
//
// With ctx's error it was not in time: what is pending is sent again as often as it takes, and
// still counts once, so don't send those updates as another batch. Any other error is what Err
// gives: nothing is sent any more.
func (p *Producer) Flush(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.window.last
	isFlushed := func() bool { return p.window.acknowledged() >= last }
	err := p.wait(ctx, func() bool { return p.err != nil || isFlushed() })
	switch {
	case isFlushed():
		return nil
	case p.err != nil:
		return p.err
	}
	return p.late(fmt.Sprintf("%d batches are not acknowledged", len(p.window.batches)), err)
}

// Close takes no more batches, flushes, and ends the stream and the producer's goroutines. If ctx
// is done before that is, they end all the same, and Close gives ctx's error if batches are left,
// which are not sent again. Closing again does no harm.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	p.notify()
	p.mu.Unlock()

	var late error
	select {
	case <-p.done:
	case <-ctx.Done():
		late = ctx.Err()
	}
	p.stop()
	<-p.done

	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.window.isEmpty():
		return nil
	case late != nil:
		return p.late(fmt.Sprintf("%d batches are not acknowledged", len(p.window.batches)), late)
	}
	return p.err
}

// Acknowledged gives the sequence through which every batch is acknowledged: what could count of
// them did, durably, and what could not is among the failures. Before the first acknowledgement it
// is FirstSequence - 1.
func (p *Producer) Acknowledged() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.window.acknowledged()
}

// Pending gives the number of batches that were taken and are not acknowledged, at most the window.
func (p *Producer) Pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.window.batches)
}

// Failed gives the number of updates that could not count.
func (p *Producer) Failed() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// Failures gives the newest 1,000 failures, oldest first.
func (p *Producer) Failures() []Failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.failures)
}

// Err gives why the producer sends nothing any more: the error with which the service refused it,
// one that every further stream would have, or [ErrClosed]. It is nil while the producer works,
// however often its streams break.
func (p *Producer) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// wait gives up the mutex until isDone or the end of ctx, whose error it gives.
func (p *Producer) wait(ctx context.Context, isDone func() bool) error {
	for !isDone() {
		changed := p.changed
		p.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		p.mu.Lock()
		if err != nil && !isDone() {
			return err
		}
	}
	return nil
}

// notify wakes all who wait for a change; the mutex is held.
func (p *Producer) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// late is the error of a context that was done too early, with what held it up.
func (p *Producer) late(what string, err error) error {
	if p.broken != nil {
		return fmt.Errorf("tallyboard: %s: %w (the last broken stream: %w)", what, err, p.broken)
	}
	return fmt.Errorf("tallyboard: %s: %w", what, err)
}
