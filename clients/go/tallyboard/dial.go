package tallyboard

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// maxAnswer is the largest answer that is taken, in bytes. gRPC's own limit is 4 MiB, and an answer
// that names what is wrong with each of 10,000 items comes close to it.
const maxAnswer = 16 << 20

// maxRepeated is the largest call that is repeated, in bytes. gRPC's own limit is 256 KiB.
const maxRepeated = 8 << 20

// Conn reaches a Tallyboard service over one or more connections. It is a
// [grpc.ClientConnInterface], so the generated stubs and [NewProducer] take it. Any number of
// goroutines may use it at the same time.
type Conn struct {
	connections []*grpc.ClientConn
	next        atomic.Uint64
}

// Dial makes a Conn to target, which is `host:port` or another name that gRPC resolves. It connects
// in the background, so an address where nobody listens is no error here: calls wait for a
// connection until their deadline, which is 10 s unless their context has one.
//
// Calls on the Conn have the deadlines and retries of the published service config. A write whose
// `request_id` is empty is sent with a random one, the same in all its repeats, so that it counts
// once even if an answer is lost; the request itself is not changed.
//
// Dial fails if an option is outside its limits (a tenant with INVALID_ARGUMENT and the reason
// TENANT_INVALID), if there is a token without TLS, or if the target can't be parsed.
func Dial(target string, options ...Option) (*Conn, error) {
	chosen := defaults()
	for _, option := range options {
		option(&chosen)
	}
	if chosen.connections < 1 || chosen.connections > MaxConnections {
		return nil, fmt.Errorf("tallyboard: connections must be from 1 to %d, not %d",
			MaxConnections, chosen.connections)
	}
	if err := checkTenant(chosen.tenant); err != nil {
		return nil, err
	}
	conn := &Conn{}
	for range chosen.connections {
		connection, err := grpc.NewClient(target, dialOptions(&chosen)...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("tallyboard: %w", err), conn.Close())
		}
		conn.connections = append(conn.connections, connection)
	}
	return conn, nil
}

// Invoke makes a unary call over the next connection in turn; the generated stubs call it.
func (c *Conn) Invoke(
	ctx context.Context, method string, request, response any, options ...grpc.CallOption,
) error {
	return c.turn().Invoke(ctx, method, request, response, options...)
}

// NewStream opens a stream over the next connection in turn, where it stays; the generated stubs
// call it.
func (c *Conn) NewStream(
	ctx context.Context, description *grpc.StreamDesc, method string, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return c.turn().NewStream(ctx, description, method, options...)
}

// Close ends all connections. Calls that are under way fail with the code CANCELLED. Close the
// producers on the Conn before.
func (c *Conn) Close() error {
	var failed []error
	for _, connection := range c.connections {
		failed = append(failed, connection.Close())
	}
	return errors.Join(failed...)
}

func (c *Conn) turn() *grpc.ClientConn {
	return c.connections[c.next.Add(1)%uint64(len(c.connections))]
}

func dialOptions(chosen *settings) []grpc.DialOption {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(chosen.transport),
		grpc.WithDefaultServiceConfig(configWithoutDeadlines),
		// It comes with this package, so nobody has to ask the DNS for it.
		grpc.WithDisableServiceConfig(),
		// Workers restart within seconds; gRPC's own backoff goes up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 3 * time.Second,
			},
			MinConnectTimeout: 3 * time.Second,
		}),
		// The service takes a ping every 10 s, and drops who sends more.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxAnswer),
			grpc.MaxRetryRPCBufferSize(maxRepeated),
		),
		grpc.WithChainUnaryInterceptor(withDeadline, withRequestID),
	}
	if chosen.tenant != "" {
		tenant := tenantSetter(chosen.tenant)
		options = append(options,
			grpc.WithChainUnaryInterceptor(tenant.unary),
			grpc.WithChainStreamInterceptor(tenant.stream))
	}
	if chosen.token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(chosen.token)))
	}
	return append(options, chosen.dial...)
}
