-- Totals live beside their points; what ended long ago is found by when.
INSERT INTO series (kind, name, metric, total)
SELECT 'protocol', substr(name, length('connections:') + 1), 'connections', value FROM counters WHERE name LIKE 'connections:%';
DROP TABLE counters;

CREATE INDEX connections_by_end ON connections (closed_ms) WHERE closed_ms IS NOT NULL;
