package tallyboard

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

type serverStream = grpc.BidiStreamingServer[
	tallyboardv1.StreamIncrementsRequest, tallyboardv1.StreamIncrementsResponse,
]

// A service is what the client needs of Tallyboard, in memory: it counts each sequence once, and
// its first streams go as their scripts say.
type service struct {
	tallyboardv1.UnimplementedCounterServiceServer
	t         *testing.T
	listener  *bufconn.Listener
	scripts   []func(serverStream) error
	increment func(context.Context, *tallyboardv1.IncrementRequest) error
	batch     func(*tallyboardv1.BatchIncrementRequest)
	window    int // how many batches may be unacknowledged

	mu          sync.Mutex
	changed     chan struct{}
	opened      int
	ended       int
	totals      map[string]int64
	seen        map[uint64]*tallyboardv1.StreamIncrementsRequest
	acked       uint64
	connections []net.Conn
}

// start serves until the end of the test; change what the service does before the first call.
func start(t *testing.T, scripts ...func(*service, serverStream) error) *service {
	t.Helper()
	s := &service{
		t:        t,
		listener: bufconn.Listen(1 << 16),
		window:   MaxWindow,
		changed:  make(chan struct{}),
		totals:   map[string]int64{},
		seen:     map[uint64]*tallyboardv1.StreamIncrementsRequest{},
	}
	for _, script := range scripts {
		s.scripts = append(s.scripts, func(stream serverStream) error { return script(s, stream) })
	}
	server := grpc.NewServer()
	tallyboardv1.RegisterCounterServiceServer(server, s)
	go func() { _ = server.Serve(s.listener) }()
	t.Cleanup(server.Stop)
	return s
}

// dial connects to the service in the way of the library.
func (s *service) dial(options ...Option) *Conn {
	s.t.Helper()
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		connection, err := s.listener.DialContext(ctx)
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.connections = append(s.connections, connection)
		}
		return connection, err
	})
	conn, err := Dial("passthrough:///memory", append(options, WithDialOptions(dialer))...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// produce makes a producer on a connection of its own; the test closes it.
func (s *service) produce(options ProducerOptions) *Producer {
	s.t.Helper()
	producer, err := NewProducer(s.dial(), options)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = producer.Close(over)
	})
	return producer
}

// cut ends all connections without a word.
func (s *service) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, connection := range s.connections {
		_ = connection.Close()
	}
	s.connections = nil
}

func (s *service) StreamIncrements(stream serverStream) error {
	s.mu.Lock()
	script := s.count
	if s.opened < len(s.scripts) {
		script = s.scripts[s.opened]
	}
	s.opened++
	s.notify()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended++
		s.notify()
	}()
	return script(stream)
}

func (s *service) Increment(
	ctx context.Context, request *tallyboardv1.IncrementRequest,
) (*tallyboardv1.IncrementResponse, error) {
	return &tallyboardv1.IncrementResponse{}, s.increment(ctx, request)
}

func (s *service) BatchIncrement(
	_ context.Context, request *tallyboardv1.BatchIncrementRequest,
) (*tallyboardv1.BatchIncrementResponse, error) {
	s.batch(request)
	return &tallyboardv1.BatchIncrementResponse{}, nil
}

// count is the script of a stream on which nothing breaks.
func (s *service) count(stream serverStream) error {
	for {
		batch, err := s.take(stream)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.acknowledge(stream, batch.GetSequence()); err != nil {
			return err
		}
	}
}

// take receives a batch, and counts it if it has not been seen before.
func (s *service) take(stream serverStream) (*tallyboardv1.StreamIncrementsRequest, error) {
	batch, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if batch.GetSequence() > s.acked+uint64(s.window) {
		s.t.Errorf("batch %d came with %d acknowledged", batch.GetSequence(), s.acked)
	}
	if before := s.seen[batch.GetSequence()]; before != nil {
		if !proto.Equal(before, batch) {
			s.t.Errorf("batch %d came again with other contents", batch.GetSequence())
		}
		return batch, nil
	}
	s.seen[batch.GetSequence()] = batch
	for index, delta := range batch.GetDeltas() {
		s.totals[batch.GetCounters()[index%len(batch.GetCounters())]] += delta
	}
	s.notify()
	return batch, nil
}

func (s *service) acknowledge(
	stream serverStream, sequence uint64, failures ...*tallyboardv1.SequenceFailure,
) error {
	s.mu.Lock()
	s.acked = max(s.acked, sequence)
	s.mu.Unlock()
	return stream.Send(&tallyboardv1.StreamIncrementsResponse{
		AcknowledgedSequence: sequence, Failures: failures, Window: MaxWindow,
	})
}

func (s *service) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// until waits for a condition on what the mutex guards.
func (s *service) until(what string, holds func() bool) {
	s.t.Helper()
	late := time.After(patience)
	for {
		s.mu.Lock()
		isThere, changed := holds(), s.changed
		s.mu.Unlock()
		if isThere {
			return
		}
		select {
		case <-changed:
		case <-late:
			s.t.Fatalf("there was no end of waiting for %s", what)
		}
	}
}

func (s *service) expectTotals(expected map[string]int64) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(s.totals, expected) {
		s.t.Errorf("the totals are %v instead of %v", s.totals, expected)
	}
}

func (s *service) expectStreams(expected int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened != expected {
		s.t.Errorf("%d streams were opened instead of %d", s.opened, expected)
	}
}

// inTime is a context for what must end.
func inTime(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
