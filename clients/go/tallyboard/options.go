package tallyboard

import (
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// MaxConnections is the most connections that a [Conn] may have.
const MaxConnections = 256

// Option is a choice for [Dial].
type Option func(*settings)

type settings struct {
	connections int
	tenant      string
	token       string
	transport   credentials.TransportCredentials
	dial        []grpc.DialOption
}

func defaults() settings {
	return settings{connections: 1, transport: insecure.NewCredentials()}
}

// WithConnections makes the Conn use that many connections, 1 to [MaxConnections], in turns. The
// default is 1. A connection reaches one worker of the service, so one for each core that the
// service may use is a good number.
func WithConnections(count int) Option {
	return func(chosen *settings) { chosen.connections = count }
}

// WithTenant sends the name of a tenant, 1 to 256 printable ASCII characters, in the metadata
// [TenantKey] of every call whose context has none. Without it, or with an empty name, the service takes the tenant of the
// credentials, or `default` where authentication is off.
func WithTenant(tenant string) Option {
	return func(chosen *settings) { chosen.tenant = tenant }
}

// WithToken sends a bearer token as the metadata `authorization` of every call. It needs [WithTLS],
// because whoever sees a token can use it. For tokens that expire, give
// [grpc.WithPerRPCCredentials] to [WithDialOptions].
func WithToken(token string) Option {
	return func(chosen *settings) { chosen.token = token }
}

// WithTLS encrypts the connections; without it they are not encrypted. A nil config checks the
// service's certificate against the roots of the system.
func WithTLS(config *tls.Config) Option {
	return func(chosen *settings) { chosen.transport = credentials.NewTLS(config) }
}

// WithDialOptions adds options of gRPC's own, interceptors for example. They come last, so they win
// over what this package sets.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(chosen *settings) { chosen.dial = append(chosen.dial, options...) }
}
