package tallyboard

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

type incrementStream = grpc.BidiStreamingClient[
	tallyboardv1.StreamIncrementsRequest, tallyboardv1.StreamIncrementsResponse,
]

var (
	errStalled = status.Error(codes.Unavailable, "no acknowledgement came for too long")
	errEnded   = status.Error(codes.Unavailable, "the service ended the stream")
	// What gRPC says as CANCELLED, and would say again for each further stream.
	errConnectionClosed = status.Error(codes.FailedPrecondition, "the connection is closed")
)

// run is the producer's goroutine: one stream after the other, while there is work for one.
func (p *Producer) run() {
	defer close(p.done)
	defer p.stop()
	for p.waitForWork() {
		err := p.serve()
		if err == nil {
			continue
		}
		if isFinal(err) {
			p.end(err)
			return
		}
		p.pause(p.noteBroken(err))
	}
	p.end(ErrClosed)
}

// waitForWork is false when there will be none: after Close, with everything acknowledged.
func (p *Producer) waitForWork() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.wait(p.life, func() bool { return p.closing || !p.window.isEmpty() })
	return err == nil && p.life.Err() == nil && !p.window.isEmpty()
}

// noteBroken keeps what broke a stream, and gives the time to wait before the next: none if nothing
// waits for one.
func (p *Producer) noteBroken(err error) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil || p.window.isEmpty() {
		return 0 // and what Close has cut off says nothing about the service
	}
	p.broken = err
	return p.backoff.delay(err)
}

func (p *Producer) pause(wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.life.Done():
	}
}

// end says to all who wait that nothing is sent any more.
func (p *Producer) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	p.notify()
}

// serve is one stream, from its start to its end: it sends here, and receives in a goroutine that
// has ended when it returns. It gives what broke the stream, or nil if it was ended on purpose.
func (p *Producer) serve() error {
	ctx, cancel := context.WithCancelCause(p.streamContext())
	defer cancel(nil)
	p.watch(func() { cancel(errStalled) })
	defer p.unwatch()

	stream, err := p.client.StreamIncrements(ctx)
	if err != nil {
		if ctx.Err() == nil && status.Code(err) == codes.Canceled {
			return errConnectionClosed
		}
		return orCause(ctx, err)
	}
	received := make(chan error, 1)
	go func() {
		err := p.receive(stream)
		received <- orCause(ctx, err)
		cancel(err) // the sender may be waiting for a batch
	}()
	isEnded, err := p.send(ctx, stream)
	if err != nil {
		cancel(err)
	}
	err = <-received
	if errors.Is(err, io.EOF) {
		if isEnded {
			return nil
		}
		return errEnded
	}
	return err
}

func (p *Producer) streamContext() context.Context {
	if p.tenant == "" {
		return p.life
	}
	return metadata.AppendToOutgoingContext(p.life, TenantKey, p.tenant)
}

// orCause is the error, or why the stream was cancelled on this side.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// watch starts the clock of a stream's acknowledgements.
func (p *Producer) watch(onStall func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stall = time.AfterFunc(p.stallTimeout, onStall)
}

func (p *Producer) unwatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stall.Stop()
	p.stall = nil
}

// send sends each batch when it is there. True means that it has ended the stream's sending side,
// because there is nothing to wait for or has not been for the idle timeout; an error, that the
// stream can't take a batch.
func (p *Producer) send(ctx context.Context, stream incrementStream) (bool, error) {
	for sent := uint64(0); ; {
		batch := p.next(ctx, sent)
		if batch == nil {
			return ctx.Err() == nil, stream.CloseSend()
		}
		if err := stream.Send(batch); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil // who receives gets the reason
			}
			return false, err
		}
		sent = batch.GetSequence()
	}
}

// next waits for a batch that the stream has not sent; nil when it is to end.
func (p *Producer) next(
	ctx context.Context, sent uint64,
) (batch *tallyboardv1.StreamIncrementsRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	isDecided := func() bool {
		batch = p.window.after(sent)
		return batch != nil || p.closing && p.window.isEmpty()
	}
	for {
		idle, cancel := context.WithTimeout(ctx, p.idleTimeout)
		err := p.wait(idle, isDecided)
		cancel()
		if err == nil || ctx.Err() != nil || p.window.isEmpty() {
			return batch
		}
	}
}

// receive takes acknowledgements until the stream ends, and gives why it did.
func (p *Producer) receive(stream incrementStream) error {
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		p.acknowledge(answer)
	}
}

// acknowledge reports the failures first, so that they are known when Flush returns. Nobody else
// takes batches out of the window meanwhile.
func (p *Producer) acknowledge(answer *tallyboardv1.StreamIncrementsResponse) {
	p.mu.Lock()
	batches := p.window.covered(answer.GetAcknowledgedSequence())
	failures := failuresIn(batches, answer)
	count := len(batches)
	p.mu.Unlock()

	if p.onFailure != nil {
		for _, failure := range failures {
			p.onFailure(failure)
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(failures)
	p.window.drop(count)
	if count > 0 {
		p.broken = nil
		p.backoff.reset()
		p.stall.Reset(p.stallTimeout)
	}
	if p.window.isEmpty() {
		p.stall.Stop()
	}
	p.notify()
}

func (p *Producer) keep(failures []Failure) {
	for _, failure := range failures {
		p.failed += uint64(failure.Updates)
	}
	p.failures = append(p.failures, failures...)
	if over := len(p.failures) - keptFailures; over > 0 {
		p.failures = slices.Delete(p.failures, 0, over)
	}
}

// isFinal tells whether the same batches would end another stream the same way.
func isFinal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented,
		codes.Unauthenticated, codes.PermissionDenied:
		return true
	}
	return ReasonOf(err) == "MESSAGE_TOO_LARGE"
}
