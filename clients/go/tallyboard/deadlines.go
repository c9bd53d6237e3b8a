package tallyboard

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// serviceConfig is the service config that is published with the contract; generate copies it.
//
//go:embed service_config.json
var serviceConfig []byte

// configWithoutDeadlines is what gRPC gets: it would cut a caller's longer deadline to the config's.
// limits are the deadlines, by the method or, up to the slash, by the service.
var configWithoutDeadlines, limits = takeDeadlines(serviceConfig)

// takeDeadlines panics if the config isn't one: it is a part of the program.
func takeDeadlines(config []byte) (rest string, limits map[string]time.Duration) {
	var parsed struct {
		LoadBalancingConfig json.RawMessage  `json:"loadBalancingConfig"`
		MethodConfig        []map[string]any `json:"methodConfig"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		panic(err)
	}
	limits = map[string]time.Duration{}
	for _, methods := range parsed.MethodConfig {
		var limit time.Duration
		if text, ok := methods["timeout"].(string); ok {
			var err error
			if limit, err = time.ParseDuration(text); err != nil {
				panic(err)
			}
		}
		delete(methods, "timeout")
		for _, each := range methods["name"].([]any) {
			name := each.(map[string]any)
			method, _ := name["method"].(string)
			limits[fmt.Sprintf("/%s/%s", name["service"], method)] = limit
		}
	}
	made, err := json.Marshal(parsed)
	if err != nil {
		panic(err)
	}
	return string(made), limits
}

// withDeadline ends a call whose context has no deadline by that of the service config.
func withDeadline(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	limit, ok := limits[method]
	if !ok {
		limit = limits[method[:strings.LastIndex(method, "/")+1]]
	}
	if _, has := ctx.Deadline(); !has && limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return invoke(ctx, method, request, response, connection, options...)
}
