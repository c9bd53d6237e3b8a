package tallyboard

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestAWriteWithoutRequestIDGetsOneOfItsOwn(t *testing.T) {
	var found []string
	service := start(t)
	service.increment = func(_ context.Context, request *tallyboardv1.IncrementRequest) error {
		found = append(found, request.GetRequestId())
		return nil
	}
	client := tallyboardv1.NewCounterServiceClient(service.dial())
	request := &tallyboardv1.IncrementRequest{Counter: "post:42", Delta: 3}
	for range 2 {
		if _, err := client.Increment(inTime(t), request); err != nil {
			t.Fatal(err)
		}
	}
	if !uuid.MatchString(found[0]) || !uuid.MatchString(found[1]) || found[0] == found[1] {
		t.Errorf("two sendings of a message had the request ids %q", found)
	}
	if request.GetRequestId() != "" {
		t.Errorf("the caller's message was changed: %v", request)
	}
}

func TestARequestIDOfTheCallerStays(t *testing.T) {
	request := &tallyboardv1.IncrementRequest{Counter: "post:42", Delta: 3, RequestId: NewRequestID()}
	if found := identified(request); found != proto.Message(request) {
		t.Errorf("%v became %v", request, found)
	}
	read := &tallyboardv1.GetCounterRequest{Counter: "post:42"}
	if found := identified(read); found != proto.Message(read) {
		t.Errorf("%v became %v", read, found)
	}
}

func TestAMessageIsSentWithAllItHas(t *testing.T) {
	var found *tallyboardv1.BatchIncrementRequest
	service := start(t)
	service.batch = func(request *tallyboardv1.BatchIncrementRequest) { found = request }
	request := &tallyboardv1.BatchIncrementRequest{
		Deltas: []*tallyboardv1.CounterDelta{{Counter: "post:42", Delta: 3}, {Counter: "x", Delta: -1}},
	}
	request.ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 1}) // field 2047, a 1
	client := tallyboardv1.NewCounterServiceClient(service.dial())
	if _, err := client.BatchIncrement(inTime(t), request); err != nil {
		t.Fatal(err)
	}
	found.RequestId = ""
	if !proto.Equal(request, found) {
		t.Errorf("%v came as %v", request, found)
	}
}

func TestARepeatHasTheRequestIDOfTheFirstTry(t *testing.T) {
	var found []string
	service := start(t)
	service.increment = func(_ context.Context, request *tallyboardv1.IncrementRequest) error {
		found = append(found, request.GetRequestId())
		if len(found) < 3 {
			return status.Error(codes.Unavailable, "not now")
		}
		return nil
	}
	client := tallyboardv1.NewCounterServiceClient(service.dial())
	request := &tallyboardv1.IncrementRequest{Counter: "post:42", Delta: 3}
	if _, err := client.Increment(inTime(t), request); err != nil {
		t.Fatal(err)
	}
	if len(found) != 3 || found[0] != found[1] || found[1] != found[2] || found[0] == "" {
		t.Errorf("the tries had the request ids %q", found)
	}
}

func TestTheTenantOfTheConnectionGivesWayToThatOfACall(t *testing.T) {
	var found [][]string
	service := start(t)
	service.increment = func(ctx context.Context, _ *tallyboardv1.IncrementRequest) error {
		found = append(found, metadata.ValueFromIncomingContext(ctx, TenantKey))
		return nil
	}
	client := tallyboardv1.NewCounterServiceClient(service.dial(WithTenant("acme")))
	call := inTime(t)
	for _, ctx := range []context.Context{
		call, metadata.AppendToOutgoingContext(call, TenantKey, "other"),
	} {
		request := &tallyboardv1.IncrementRequest{Counter: "post:42", Delta: 3}
		if _, err := client.Increment(ctx, request); err != nil {
			t.Fatal(err)
		}
	}
	if len(found[0]) != 1 || found[0][0] != "acme" || len(found[1]) != 1 || found[1][0] != "other" {
		t.Errorf("the tenants were %q", found)
	}
}

func TestATenantThatMetadataCannotCarryIsRefused(t *testing.T) {
	service := start(t)
	for _, tenant := range []string{"acmé", "ac\nme", "ac\x00me", strings.Repeat("x", 257)} {
		conn, err := Dial("127.0.0.1:7411", WithTenant(tenant))
		if err == nil {
			_ = conn.Close()
		}
		_, failed := NewProducer(service.dial(), ProducerOptions{Tenant: tenant})
		for _, found := range []error{err, failed} {
			if status.Code(found) != codes.InvalidArgument || ReasonOf(found) != "TENANT_INVALID" {
				t.Errorf("the tenant %q gave %v", tenant, found)
			}
		}
	}
}

func TestACallHasTheDeadlineOfTheServiceConfigOrOneOfItsOwn(t *testing.T) {
	var left time.Duration
	service := start(t)
	service.increment = func(ctx context.Context, _ *tallyboardv1.IncrementRequest) error {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil
	}
	client := tallyboardv1.NewCounterServiceClient(service.dial())
	for given, expected := range map[time.Duration]struct{ least, most time.Duration }{
		0:                {5 * time.Second, 10 * time.Second},
		2 * time.Second:  {0, 2 * time.Second},
		60 * time.Second: {30 * time.Second, 60 * time.Second},
	} {
		ctx, cancel := context.Background(), func() {}
		if given > 0 {
			ctx, cancel = context.WithTimeout(ctx, given)
		}
		request := &tallyboardv1.IncrementRequest{Counter: "post:42", Delta: 3}
		_, err := client.Increment(ctx, request)
		cancel()
		if err != nil || left < expected.least || left > expected.most {
			t.Errorf("with a limit of %v the service had %v left (%v)", given, left, err)
		}
	}
}

func TestOnlyTheMethodsOfTheServiceConfigHaveADeadline(t *testing.T) {
	for method, expected := range map[string]time.Duration{
		"/tallyboard.v1.CounterService/Increment":       10 * time.Second,
		"/tallyboard.v1.OperationsService/GetStatus":    10 * time.Second,
		"/tallyboard.v1.OperationsService/Verify":       0,
		"/tallyboard.v1.CounterService/WatchCounters":   0,
		"/tallyboard.v1.LeaderboardService/ListEntries": 10 * time.Second,
		"/acme.Other/Call":                              0,
	} {
		invoke := func(
			ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption,
		) error {
			deadline, has := ctx.Deadline()
			left := time.Until(deadline)
			if has != (expected > 0) || has && (left > expected || left < expected/2) {
				t.Errorf("%s has a deadline in %v", method, left)
			}
			return nil
		}
		_ = withDeadline(context.Background(), method, nil, nil, nil, invoke)
	}
}

func TestConnectionsTakeTurns(t *testing.T) {
	service := start(t)
	service.increment = func(context.Context, *tallyboardv1.IncrementRequest) error { return nil }
	client := tallyboardv1.NewCounterServiceClient(service.dial(WithConnections(3)))
	for range 6 {
		request := &tallyboardv1.IncrementRequest{Counter: "post:42", Delta: 3}
		if _, err := client.Increment(inTime(t), request); err != nil {
			t.Fatal(err)
		}
	}
	service.mu.Lock()
	defer service.mu.Unlock()
	if len(service.connections) != 3 {
		t.Errorf("%d connections were made instead of 3", len(service.connections))
	}
}

func TestDialRefuses(t *testing.T) {
	for name, option := range map[string]Option{
		"no connections":       WithConnections(0),
		"too many connections": WithConnections(MaxConnections + 1),
		"a token without TLS":  WithToken("secret"),
		"a bad service config": WithDialOptions(grpc.WithDefaultServiceConfig("{")),
	} {
		if conn, err := Dial("127.0.0.1:7411", option); err == nil {
			t.Errorf("%s were taken", name)
			_ = conn.Close()
		}
	}
	conn, err := Dial("127.0.0.1:7411", WithToken("secret"), WithTLS(nil))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
