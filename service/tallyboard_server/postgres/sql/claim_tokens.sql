-- Notes which row of the journal has a token, and gives the row that has it.
INSERT INTO tallyboard.journal_tokens AS held (token, sequence, journal_id)
SELECT * FROM unnest(%(tokens)s::text[], %(sequences)s::bigint[], %(ids)s::bigint[])
-- What is there is given too: a plain DO NOTHING would say nothing of it.
ON CONFLICT (token, sequence) DO UPDATE SET journal_id = held.journal_id
RETURNING token, sequence, journal_id
