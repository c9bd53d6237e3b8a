package tallyboard

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Domain is that of the google.rpc.ErrorInfo of every error of the service.
const Domain = "tallyboard"

// Violation says what is wrong with one field of a request.
type Violation struct {
	// Field is the path of the field, `deltas[3].counter` for example.
	Field string
	// Description is a few words for a person.
	Description string
}

// ReasonOf gives the reason of an error of the service or of a [Producer]: the name of a
// tallyboardv1.ErrorReason without its prefix, `NAME_INVALID` for example. It is empty for other
// errors: of the transport, of a context, and nil. The error may be wrapped. For the status of one
// item of a batch, give status.ErrorProto(item.GetStatus()).
func ReasonOf(err error) string {
	for _, detail := range detailsOf(err) {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetReason()
		}
	}
	return ""
}

// ViolationsOf gives the fields at fault, from the error's google.rpc.BadRequest; none if it does
// not name any.
func ViolationsOf(err error) []Violation {
	var found []Violation
	for _, detail := range detailsOf(err) {
		request, _ := detail.(*errdetails.BadRequest)
		for _, violation := range request.GetFieldViolations() {
			found = append(found, Violation{violation.GetField(), violation.GetDescription()})
		}
	}
	return found
}

// RetryAfter gives the least time to wait before another try, from the error's
// google.rpc.RetryInfo; false if the service did not say.
func RetryAfter(err error) (time.Duration, bool) {
	for _, detail := range detailsOf(err) {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return max(0, info.GetRetryDelay().AsDuration()), true
		}
	}
	return 0, false
}

func detailsOf(err error) []any {
	found, ok := status.FromError(err)
	if !ok {
		return nil
	}
	return found.Details()
}

// refusal is an error as the service would make it, for what is not worth sending.
func refusal(reason, field, format string, arguments ...any) error {
	description := fmt.Sprintf(format, arguments...)
	made := status.Newf(codes.InvalidArgument, "%s %s", field, description)
	detailed, err := made.WithDetails(
		&errdetails.ErrorInfo{Reason: reason, Domain: Domain},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: field, Description: description},
		}},
	)
	if err != nil {
		return made.Err()
	}
	return detailed.Err()
}
