package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
)

var (
	integer = regexp.MustCompile(`^-?[0-9]+$`)
	decimal = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)
)

// difference says what is not as expected, or nothing. What is expected is a part of what must be
// found; both are plain JSON, with numbers as json.Number.
func difference(expected, found any, path string) string {
	if expected == "$any" {
		if isDefault(found) {
			return path + " is missing"
		}
		return ""
	}
	switch expected := expected.(type) {
	case map[string]any:
		return fieldsDifference(expected, found, path)
	case []any:
		return itemsDifference(expected, found, path)
	}
	isSame := isDefault(found)
	if !isDefault(expected) {
		isSame = isEqual(expected, found)
	}
	if isSame {
		return ""
	}
	return fmt.Sprintf("%s is %s instead of %s", path, shown(found), shown(expected))
}

func fieldsDifference(expected map[string]any, found any, path string) string {
	held, _ := found.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		if wrong := difference(expected[name], held[name], path+"."+name); wrong != "" {
			return wrong
		}
	}
	return ""
}

func itemsDifference(expected []any, found any, path string) string {
	items, _ := found.([]any)
	if len(items) != len(expected) {
		return fmt.Sprintf("%s has %d items instead of %d: %s",
			path, len(items), len(expected), shown(found))
	}
	for index, item := range items {
		wrong := difference(expected[index], item, fmt.Sprintf("%s[%d]", path, index))
		if wrong != "" {
			return wrong
		}
	}
	return ""
}

// isDefault tells whether the JSON mapping would leave the value out.
func isDefault(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case string:
		return value == "" || value == "0"
	case bool:
		return !value
	case json.Number:
		number, err := value.Float64()
		return err == nil && number == 0
	case []any:
		return len(value) == 0
	case map[string]any:
		return len(value) == 0
	}
	return false
}

// isEqual compares two scalars. 64-bit integers are strings in the JSON mapping, so texts that are
// numbers equal numbers.
func isEqual(expected, found any) bool {
	wanted, wantedIsText := textOf(expected)
	held, heldIsText := textOf(found)
	switch {
	case !wantedIsText || !heldIsText:
		return expected == found
	case integer.MatchString(wanted) && integer.MatchString(held):
		one, _ := new(big.Int).SetString(wanted, 10)
		other, _ := new(big.Int).SetString(held, 10)
		return one.Cmp(other) == 0
	case decimal.MatchString(wanted) && decimal.MatchString(held):
		one, _ := strconv.ParseFloat(wanted, 64)
		other, _ := strconv.ParseFloat(held, 64)
		return one == other
	}
	return wanted == held
}

func textOf(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case json.Number:
		return value.String(), true
	}
	return "", false
}

func shown(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(data)
}
