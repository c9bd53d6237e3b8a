package tallyboard

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TenantKey is the metadata key that names the tenant of a call. To choose one for a single call:
// metadata.AppendToOutgoingContext(ctx, tallyboard.TenantKey, "acme").
const TenantKey = "x-tallyboard-tenant"

// withRequestID runs once for a call, above its retries, so that all of them have the same id.
func withRequestID(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	if message, ok := request.(proto.Message); ok {
		request = identified(message)
	}
	return invoke(ctx, method, request, response, connection, options...)
}

// identified is the message itself, or a copy with a request id if it lacks one. The caller's
// message stays as it is: with an id in it, sending it a second time would count nothing.
func identified(message proto.Message) proto.Message {
	reflected := message.ProtoReflect()
	field := reflected.Descriptor().Fields().ByName("request_id")
	isText := field != nil && field.Kind() == protoreflect.StringKind && !field.IsList()
	if !isText || reflected.Get(field).String() != "" {
		return message
	}
	// A shallow copy: a request may hold 10,000 items, which are only read from here on.
	copied := reflected.New()
	reflected.Range(func(each protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		copied.Set(each, value)
		return true
	})
	copied.SetUnknown(reflected.GetUnknown())
	copied.Set(field, protoreflect.ValueOfString(NewRequestID()))
	return copied.Interface()
}

// tenantSetter puts a tenant into the metadata of calls that have none.
type tenantSetter string

func (t tenantSetter) unary(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	return invoke(t.on(ctx), method, request, response, connection, options...)
}

func (t tenantSetter) stream(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return open(t.on(ctx), description, connection, method, options...)
}

func (t tenantSetter) on(ctx context.Context) context.Context {
	sent, _ := metadata.FromOutgoingContext(ctx)
	if len(sent.Get(TenantKey)) > 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, TenantKey, string(t))
}

// bearer is a token as gRPC's credentials of a call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return true }
