package tallyboard

import (
	"crypto/rand"
	"fmt"
)

// NewRequestID gives a random UUID for the `request_id` of a write. [Dial] makes connections that put
// one into every write that has none; one of your own is for a call that you may make again
// yourself, after DEADLINE_EXCEEDED for example.
func NewRequestID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
