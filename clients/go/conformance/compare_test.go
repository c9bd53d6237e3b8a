package main

import "testing"

func TestWhatIsExpectedIsAPartOfWhatIsFound(t *testing.T) {
	for _, each := range []struct {
		expected, found string
		isSame          bool
	}{
		{`{"a": 1}`, `{"a": 1, "b": 2}`, true},
		{`{"a": 1, "b": 2}`, `{"a": 1}`, false},
		{`{"a": {"b": "x"}}`, `{"a": {"b": "y"}}`, false},
		{`{"a": 0, "b": "", "c": false, "d": [], "e": "0"}`, `{}`, true},
		{`{}`, `{"a": 1}`, true},
		{`{"a": 0}`, `{"a": 1}`, false},
		{`{"a": 1}`, `{"a": "1"}`, true},
		{`{"a": "9223372036854775807"}`, `{"a": "9223372036854775806"}`, false},
		{`{"a": 9223372036854775807}`, `{"a": "9223372036854775807"}`, true},
		{`{"a": 1.50}`, `{"a": 1.5}`, true},
		{`{"a": 1}`, `{"a": 1.5}`, false},
		{`{"a": true}`, `{"a": 1}`, false},
		{`{"a": "1e"}`, `{"a": "1f"}`, false},
		{`{"a": "$any"}`, `{"a": "x"}`, true},
		{`{"a": "$any"}`, `{"a": "0"}`, false},
		{`{"a": "$any"}`, `{}`, false},
		{`{"a": [1, 2]}`, `{"a": [1, 2, 3]}`, false},
		{`{"a": [{"b": 1}]}`, `{"a": [{"b": 1, "c": 2}]}`, true},
		{`{"a": [{"b": 1}]}`, `{"a": [{"b": 2}]}`, false},
		{`{"a": [1]}`, `{}`, false},
	} {
		wrong := difference(parsed(t, each.expected), parsed(t, each.found), "it")
		if (wrong == "") != each.isSame {
			t.Errorf("%s in %s: %q", each.expected, each.found, wrong)
		}
	}
}

func TestVariablesAreReplacedInAllStrings(t *testing.T) {
	raw := parsed(t, `{"call": "${a}", "request": {"x": ["-${a}-${b}", 7]}, "error": {"code": "${b}"}}`)
	step, err := filled(raw, func(name string) string { return name + name })
	if err != nil {
		t.Fatal(err)
	}
	request := string(step.Request)
	if step.Call != "aa" || request != `{"x":["-aa-bb",7]}` || step.Error["code"] != "bb" {
		t.Errorf("the step became %+v with the request %s", step, request)
	}
}

func parsed(t *testing.T, data string) any {
	t.Helper()
	var found any
	if err := decode([]byte(data), &found); err != nil {
		t.Fatal(err)
	}
	return found
}
