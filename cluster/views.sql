-- The view `runs`: one row per run over the packed files of a store, for DuckDB started in the store's folder:
--
--     cd dass-store && dass compact && duckdb -init .../cluster/views.sql
--
-- (`python -c "import cluster, pathlib; print(pathlib.Path(cluster.__file__).parent / 'views.sql')"` prints this file's
-- path.) Packed files may hold a run twice, when two compactions met; the lowest (incarnation, attempt) is its record.
-- Loose records are not seen: `dass compact` packs them. The columns are described in cluster/tables.py.
CREATE OR REPLACE VIEW runs AS
SELECT * EXCLUDE (filename)
FROM read_parquet('records/packed/*/*.parquet', union_by_name = true, filename = true)
QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY incarnation, attempt, filename) = 1;
