// Package tallyboard connects to Tallyboard, a service for live counters and leaderboards.
//
// [Dial] makes connections for the generated stubs of the package tallyboardv1, with the deadlines,
// retries and request ids that let every write count once. [Producer] is the high-volume way to
// count: a stream of batches that survives whatever breaks it. [ReasonOf], [ViolationsOf] and
// [RetryAfter] read the details of errors.
package tallyboard
