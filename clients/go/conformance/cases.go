package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// A conformanceCase has its steps as plain JSON until their variables are known.
type conformanceCase struct {
	Name  string `json:"name"`
	Steps []any  `json:"steps"`
}

// A step is what tests/conformance/README.md says of its fields.
type step struct {
	Call     string          `json:"call"`
	Request  json.RawMessage `json:"request"`
	Response any             `json:"response"`
	// Responses are those of a server-streaming call.
	Responses []any             `json:"responses"`
	Save      map[string]string `json:"save"`

	Stream       string            `json:"stream"`
	Requests     []json.RawMessage `json:"requests"`
	Acknowledged any               `json:"acknowledged"`
	Failures     []any             `json:"failures"`

	Produce *struct {
		ProducerID string `json:"producer_id"`
		Batches    []struct {
			Counters []string      `json:"counters"`
			Deltas   []json.Number `json:"deltas"`
		} `json:"batches"`
	} `json:"produce"`

	Control map[string]any `json:"control"`

	Error      map[string]any `json:"error"`
	With       string         `json:"with"`
	Tenant     *string        `json:"tenant"`
	DeadlineMS int64          `json:"deadline_ms"`
}

func casesOf(file string) ([]conformanceCase, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var held struct {
		Cases []conformanceCase `json:"cases"`
	}
	if err := decode(data, &held); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return held.Cases, nil
}

// decode keeps numbers as they are written, because a float64 does not hold every 64-bit integer.
func decode(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	return decoder.Decode(into)
}

var variable = regexp.MustCompile(`\$\{([^}]+)\}`)

// filled is the step with the variables in all its strings replaced.
func filled(raw any, variables func(name string) string) (*step, error) {
	data, err := json.Marshal(replaced(raw, variables))
	if err != nil {
		return nil, err
	}
	found := &step{}
	return found, decode(data, found)
}

func replaced(value any, variables func(name string) string) any {
	switch value := value.(type) {
	case string:
		return variable.ReplaceAllStringFunc(value, func(match string) string {
			return variables(strings.TrimSuffix(strings.TrimPrefix(match, "${"), "}"))
		})
	case []any:
		items := make([]any, len(value))
		for index, item := range value {
			items[index] = replaced(item, variables)
		}
		return items
	case map[string]any:
		fields := make(map[string]any, len(value))
		for name, field := range value {
			fields[name] = replaced(field, variables)
		}
		return fields
	}
	return value
}
