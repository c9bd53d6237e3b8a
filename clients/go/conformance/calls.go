package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/tallyboard/tallyboard/clients/go/tallyboard"
	tallyboardv1 "github.com/tallyboard/tallyboard/clients/go/tallyboard/v1"
)

// A method is an RPC by its name in a step, `CounterService/Increment` for example.
type method struct {
	path            string
	request, answer protoreflect.MessageType
	isStreaming     bool // from the server
}

func methodOf(name string) (*method, error) {
	full := "tallyboard.v1." + name
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(
		protoreflect.FullName(strings.Replace(full, "/", ".", 1)))
	if err != nil {
		return nil, err
	}
	described, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", name)
	}
	request, err := protoregistry.GlobalTypes.FindMessageByName(described.Input().FullName())
	if err != nil {
		return nil, err
	}
	answer, err := protoregistry.GlobalTypes.FindMessageByName(described.Output().FullName())
	return &method{"/" + full, request, answer, described.IsStreamingServer()}, err
}

func (m *method) parse(data json.RawMessage) (proto.Message, error) {
	request := m.request.New().Interface()
	return request, protojson.Unmarshal(data, request)
}

func (r *run) call(step *step) error {
	method, err := methodOf(step.Call)
	if err != nil {
		return err
	}
	if method.isStreaming {
		return r.watch(step)
	}
	request, err := method.parse(step.Request)
	if err != nil {
		return err
	}
	ctx, cancel := r.context(step)
	defer cancel()
	answer := method.answer.New().Interface()
	if err := r.connection(step).Invoke(ctx, method.path, request, answer); err != nil {
		return expectError(step, err)
	}
	found, err := plain(answer)
	if err != nil {
		return err
	}
	if step.Error != nil {
		return fmt.Errorf("%s instead of %s", shown(found), shown(step.Error))
	}
	if wrong := difference(step.Response, found, "response"); wrong != "" {
		return errors.New(wrong)
	}
	return r.save(step, found)
}

func (r *run) save(step *step, found any) error {
	for name, path := range step.Save {
		value := found
		for part := range strings.SplitSeq(path, ".") {
			fields, _ := value.(map[string]any)
			value = fields[part]
		}
		text, ok := textOf(value)
		if !ok {
			return fmt.Errorf("%s has no text to save: %s", path, shown(value))
		}
		r.variables[name] = text
	}
	return nil
}

// watch reads as many messages of a server stream as are expected.
func (r *run) watch(step *step) error {
	method, stream, cancel, err := r.open(step.Call, step, []json.RawMessage{step.Request})
	if err != nil {
		return err
	}
	defer cancel()
	var found []any
	for range max(1, len(step.Responses)) {
		answer := method.answer.New().Interface()
		err := stream.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return expectError(step, err)
		}
		item, err := plain(answer)
		if err != nil {
			return err
		}
		found = append(found, item)
	}
	if step.Error != nil {
		return fmt.Errorf("%s instead of %s", shown(found), shown(step.Error))
	}
	return expect(step.Responses, found, "responses")
}

// An acknowledgement is an answer of StreamIncrements or of StreamScores.
type acknowledgement interface {
	proto.Message
	GetAcknowledgedSequence() uint64
}

// stream sends all requests, and reads to the end.
func (r *run) stream(step *step) error {
	method, stream, cancel, err := r.open(step.Stream, step, step.Requests)
	if err != nil {
		return err
	}
	defer cancel()
	acknowledged, failures := uint64(0), []any{}
	for {
		answer, ok := method.answer.New().Interface().(acknowledgement)
		if !ok {
			return fmt.Errorf("%s does not acknowledge", step.Stream)
		}
		err := stream.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return expectError(step, err)
		}
		acknowledged = max(acknowledged, answer.GetAcknowledgedSequence())
		more, err := failuresOf(answer)
		if err != nil {
			return err
		}
		failures = append(failures, more...)
	}
	if step.Error != nil {
		return fmt.Errorf("%d acknowledged instead of %s", acknowledged, shown(step.Error))
	}
	if err := expect(step.Acknowledged, acknowledged, "acknowledged"); err != nil {
		return err
	}
	if step.Failures == nil {
		step.Failures = []any{}
	}
	return expect(step.Failures, failures, "failures")
}

// open opens a stream, sends the requests and ends the sending side.
func (r *run) open(
	name string, step *step, requests []json.RawMessage,
) (*method, grpc.ClientStream, func(), error) {
	method, err := methodOf(name)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := r.context(step)
	description := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := r.connection(step).NewStream(ctx, description, method.path)
	if err == nil {
		err = sendRequests(stream, method, requests)
	}
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return method, stream, cancel, nil
}

func sendRequests(stream grpc.ClientStream, method *method, requests []json.RawMessage) error {
	for _, data := range requests {
		request, err := method.parse(data)
		if err != nil {
			return err
		}
		err = stream.SendMsg(request)
		if errors.Is(err, io.EOF) {
			return nil // the stream has ended, and reading says why
		}
		if err != nil {
			return err
		}
	}
	return stream.CloseSend()
}

// failuresOf gives the failures in an acknowledgement as JSON, each with the reason of its status.
func failuresOf(answer acknowledgement) ([]any, error) {
	var failures []any
	add := func(failure proto.Message, reason string) error {
		found, err := plain(failure)
		if fields, ok := found.(map[string]any); ok {
			fields["reason"] = reason
		}
		failures = append(failures, found)
		return err
	}
	var failed []error
	switch answer := answer.(type) {
	case *tallyboardv1.StreamIncrementsResponse:
		for _, failure := range answer.GetFailures() {
			reason := tallyboard.ReasonOf(status.ErrorProto(failure.GetStatus()))
			failed = append(failed, add(failure, reason))
		}
	case *tallyboardv1.StreamScoresResponse:
		for _, failure := range answer.GetFailures() {
			reason := tallyboard.ReasonOf(status.ErrorProto(failure.GetStatus()))
			failed = append(failed, add(failure, reason))
		}
	}
	return failures, errors.Join(failed...)
}

// expectError compares what a call failed with to what the step expects.
func expectError(step *step, failed error) error {
	if step.Error == nil {
		return failed
	}
	fields := []any{}
	for _, violation := range tallyboard.ViolationsOf(failed) {
		fields = append(fields, violation.Field)
	}
	_, retryable := tallyboard.RetryAfter(failed)
	found := map[string]any{
		"code":      code.Code(status.Code(failed)).String(),
		"reason":    tallyboard.ReasonOf(failed),
		"fields":    sorted(fields),
		"retryable": retryable,
	}
	if wanted, ok := step.Error["fields"].([]any); ok {
		step.Error["fields"] = sorted(wanted)
	}
	return expect(step.Error, found, "error")
}

func sorted(values []any) []any {
	return slices.SortedFunc(slices.Values(values), func(one, other any) int {
		return strings.Compare(fmt.Sprint(one), fmt.Sprint(other))
	})
}

// expect compares after making plain JSON of what was found.
func expect(expected, found any, what string) error {
	data, err := json.Marshal([]any{expected, found})
	if err != nil {
		return err
	}
	var both []any
	if err := decode(data, &both); err != nil {
		return err
	}
	if wrong := difference(both[0], both[1], what); wrong != "" {
		return errors.New(wrong)
	}
	return nil
}

// plain is a message in protobuf's JSON mapping.
func plain(message proto.Message) (any, error) {
	data, err := protojson.Marshal(message)
	if err != nil {
		return nil, err
	}
	var found any
	err = decode(data, &found)
	return found, err
}
