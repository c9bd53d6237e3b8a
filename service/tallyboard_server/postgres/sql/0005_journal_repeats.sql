-- Other rows of the journal that have the same token: of one that comes too late for its ring they
-- tell whether it was applied.
ALTER TABLE tallyboard.journal_tokens
    ADD COLUMN repeated_by bigint[] NOT NULL DEFAULT '{}';
