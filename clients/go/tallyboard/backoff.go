package tallyboard

import (
	"math/rand/v2"
	"time"
)

const (
	firstWait   = 50 * time.Millisecond
	longestWait = 3 * time.Second
)

// waits are those before a broken stream is opened again. They double from 50 ms to 3 s, each
// shortened at random by up to half, so that producers that lose the same worker come back at
// different moments.
type waits struct {
	next time.Duration
}

func (w *waits) reset() { w.next = firstWait }

// delay is the wait now: at least what the error's RetryInfo asks for.
func (w *waits) delay(err error) time.Duration {
	next := max(w.next, firstWait)
	w.next = min(2*next, longestWait)
	wait := next/2 + rand.N(next/2+1)
	if asked, ok := RetryAfter(err); ok {
		wait = max(wait, asked+rand.N(asked/10+1))
	}
	return wait
}
