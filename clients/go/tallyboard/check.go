package tallyboard

import (
	"fmt"
	"unicode/utf8"
)

// What the service takes; see the comments of StreamIncrementsRequest.
const (
	// MaxUpdates is the most deltas in a batch of a [Producer].
	MaxUpdates = 10_000
	// MaxWindow is the most batches that a [Producer] may have unacknowledged.
	MaxWindow    = 256
	maxNameBytes = 256
)

// checkBatch refuses what would end the stream, or fail all the updates of a counter with it.
func checkBatch(counters []string, deltas []int64) error {
	switch {
	case len(deltas) == 0:
		return refusal("FIELD_INVALID", "deltas", "must not be empty")
	case len(deltas) > MaxUpdates:
		return refusal("TOO_MANY_ITEMS", "deltas", "has %d items; at most %d are allowed",
			len(deltas), MaxUpdates)
	case len(counters) != 1 && len(counters) != len(deltas):
		return refusal("FIELD_INVALID", "counters", "are %d and do not match %d deltas",
			len(counters), len(deltas))
	}
	for index, counter := range counters {
		if wrong := wrongName(counter); wrong != "" {
			return refusal("NAME_INVALID", fmt.Sprintf("counters[%d]", index), "%s", wrong)
		}
	}
	for index, delta := range deltas {
		if delta == 0 {
			return refusal("DELTA_ZERO", fmt.Sprintf("deltas[%d]", index), "must not be 0")
		}
	}
	return nil
}

// checkTenant refuses a name that metadata can't carry; none is no name.
func checkTenant(tenant string) error {
	if len(tenant) > maxNameBytes {
		return refusal("TENANT_INVALID", "metadata "+TenantKey, "must have at most %d bytes, not %d",
			maxNameBytes, len(tenant))
	}
	for _, each := range []byte(tenant) {
		if each < ' ' || each > '~' {
			return refusal("TENANT_INVALID", "metadata "+TenantKey, "must be printable ASCII")
		}
	}
	return nil
}

// wrongName is what is wrong with a name, or nothing. Control characters are left to the service.
func wrongName(name string) string {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Sprintf("must have 1 to %d bytes, not %d", maxNameBytes, len(name))
	}
	if !utf8.ValidString(name) {
		return "must be UTF-8"
	}
	return ""
}
