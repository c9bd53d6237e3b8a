package tallyboard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

func failing(code codes.Code, details ...protoadapt.MessageV1) error {
	made, err := status.New(code, "a sentence").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return made.Err()
}

func TestTheDetailsOfAnErrorAreRead(t *testing.T) {
	err := fmt.Errorf("wrapped: %w", failing(codes.InvalidArgument,
		&errdetails.ErrorInfo{Reason: "OTHER", Domain: "elsewhere"},
		&errdetails.ErrorInfo{Reason: "NAME_INVALID", Domain: Domain},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "deltas[3].counter", Description: "is empty"}, {Field: "deltas[4].delta"},
		}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
	))
	if reason := ReasonOf(err); reason != "NAME_INVALID" {
		t.Errorf("the reason is %q", reason)
	}
	expected := []Violation{{"deltas[3].counter", "is empty"}, {"deltas[4].delta", ""}}
	if violations := ViolationsOf(err); !slices.Equal(violations, expected) {
		t.Errorf("the violations are %v", violations)
	}
	if wait, ok := RetryAfter(err); wait != 1500*time.Millisecond || !ok {
		t.Errorf("the wait is %v, %v", wait, ok)
	}
}

func TestAnErrorWithoutDetailsHasNone(t *testing.T) {
	for _, err := range []error{
		nil, errors.New("x"), context.Canceled, status.Error(codes.Unavailable, "gone"),
	} {
		wait, ok := RetryAfter(err)
		if ReasonOf(err) != "" || ViolationsOf(err) != nil || wait != 0 || ok {
			t.Errorf("%v has details", err)
		}
	}
}

func TestWaitsDoubleUpToTheLongest(t *testing.T) {
	var waits waits
	for _, longest := range []time.Duration{50, 100, 200, 400, 800, 1600, 3000, 3000} {
		longest *= time.Millisecond
		if wait := waits.delay(nil); wait < longest/2 || wait > longest {
			t.Errorf("the wait is %v instead of %v to %v", wait, longest/2, longest)
		}
	}
	waits.reset()
	if wait := waits.delay(nil); wait > firstWait {
		t.Errorf("the wait after a reset is %v", wait)
	}
	asked := failing(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)})
	if wait := waits.delay(asked); wait < time.Minute || wait > 66*time.Second {
		t.Errorf("the wait is %v where a minute was asked for", wait)
	}
}
