-- Totals live beside their points.
INSERT INTO series (kind, name, metric, total)
SELECT 'protocol', substr(name, length('connections:') + 1), 'connections', value FROM counters WHERE name LIKE 'connections:%';
DROP TABLE counters;
