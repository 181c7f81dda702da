//! A query being built, and its rows, in the same way for both databases.

use std::fmt::Write;
use std::ops::ControlFlow;

use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};

use super::StoreError;
use super::db::{Either, Pool, both};

/// The value of a placeholder.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(i64),
    Text(Box<str>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.into())
    }
}

/// The columns of a row, by index.
pub(super) trait Columns {
    fn int(&self, column: usize) -> sqlx::Result<Option<i64>>;
    fn text(&self, column: usize) -> sqlx::Result<Option<&str>>;
    fn bytes(&self, column: usize) -> sqlx::Result<Option<&[u8]>>;

    /// A number that is never null.
    fn number(&self, column: usize) -> sqlx::Result<i64> {
        Ok(self.int(column)?.unwrap_or_default())
    }

    /// A text that is never null.
    fn word(&self, column: usize) -> sqlx::Result<&str> {
        Ok(self.text(column)?.unwrap_or_default())
    }
}

macro_rules! columns {
    ($row:ty) => {
        impl Columns for $row {
            fn int(&self, column: usize) -> sqlx::Result<Option<i64>> {
                self.try_get(column)
            }

            fn text(&self, column: usize) -> sqlx::Result<Option<&str>> {
                self.try_get(column)
            }

            fn bytes(&self, column: usize) -> sqlx::Result<Option<&[u8]>> {
                self.try_get(column)
            }
        }
    };
}

columns!(SqliteRow);
columns!(PgRow);

/// A query. Values from outside go into it only through [`Query::value`].
#[derive(Debug, Clone)]
pub(super) struct Query<'p> {
    pool: &'p Pool,
    text: String,
    values: Vec<Value>,
}

impl<'p> Query<'p> {
    pub(super) fn new(pool: &'p Pool, text: &str) -> Self {
        Self { pool, text: text.to_owned(), values: Vec::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a placeholder and its value.
    pub(super) fn value(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        // Writing to a text cannot fail.
        write!(self.text, "${}", self.values.len()).ok();
        self
    }

    /// A text column that must not choose the index: an expression does not.
    pub(super) fn aside(&mut self, column: &str) -> &mut Self {
        match self.pool.db {
            Either::Sqlite(_) => self.push("+").push(column),
            Either::Postgres(_) => self.push("(").push(column).push(" || '')"),
        }
    }

    /// The same for numbers.
    pub(super) fn aside_number(&mut self, column: &str) -> &mut Self {
        match self.pool.db {
            Either::Sqlite(_) => self.push("+").push(column),
            Either::Postgres(_) => self.push("(").push(column).push(" + 0)"),
        }
    }

    /// Adds the condition that a column has one of these values.
    pub(super) fn among(&mut self, column: &str, values: &[i64]) -> &mut Self {
        let list = values.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        self.aside_number(column);
        match self.pool.db {
            Either::Sqlite(_) => self.push(" IN (SELECT value FROM json_each('[' || ").value(&*list).push(" || ']'))"),
            Either::Postgres(_) => self.push(" = ANY (string_to_array(").value(&*list).push(", ',')::bigint[])"),
        }
    }

    /// Adds the condition that a column has a value, and that the column after it in an index is between two others.
    ///
    /// PostgreSQL would rather walk all rows in the order of `key` if it believes that many have the value, and would take very
    /// long if those are not among the first. A comparison of pairs, ordered by both, leaves only this index.
    pub(super) fn within(&mut self, column: &str, value: impl Into<Value>, key: &str, low: i64, high: i64) -> &mut Self {
        if let Either::Sqlite(_) = self.pool.db {
            self.push(column).push(" = ").value(value).push(" AND ");
            return self.between(key, low, high);
        }
        let value = value.into();
        self.push(column).push(" IS NOT NULL");
        for (comparison, bound) in [(">=", low), ("<=", high)] {
            self.push(&format!(" AND ({column}, {key}) {comparison} (")).value(value.clone()).push(", ").value(bound).push(")");
        }
        self
    }

    /// Adds the condition that a column is between two values.
    pub(super) fn between(&mut self, column: &str, low: i64, high: i64) -> &mut Self {
        self.push(column).push(" >= ").value(low).push(" AND ").push(column).push(" <= ").value(high)
    }

    /// Adds the condition that a column's text, its ASCII letters in lower case, contains a text.
    pub(super) fn holds_lower(&mut self, column: &str, lower: &str) -> &mut Self {
        match self.pool.db {
            Either::Sqlite(_) => self.push("instr(lower(").push(column).push("), ").value(lower).push(") > 0"),
            // Another collation would change letters that are not ASCII.
            Either::Postgres(_) => self.push("strpos(lower(").push(column).push(" COLLATE \"C\"), ").value(lower).push(") > 0"),
        }
    }

    /// Adds the condition that a column contains a text.
    pub(super) fn holds(&mut self, column: &str, text: &str) -> &mut Self {
        let function = if let Either::Sqlite(_) = self.pool.db { "instr(" } else { "strpos(" };
        self.push(function).push(column).push(", ").value(text).push(") > 0")
    }

    /// Calls `row` for each row, until there are no more or it returns `Break`.
    pub(super) async fn each(&self, mut row: impl FnMut(&dyn Columns) -> Result<ControlFlow<()>, StoreError>) -> Result<(), StoreError> {
        both!(&self.pool.db, db => {
            let mut query = sqlx::query(AssertSqlSafe(self.text.clone()));
            for value in &self.values {
                query = match value {
                    Value::Int(number) => query.bind(*number),
                    Value::Text(text) => query.bind(&**text),
                };
            }
            let mut rows = query.fetch(db);
            while let Some(next) = rows.try_next().await.inspect_err(|error| self.pool.heed(error))? {
                if row(&next)?.is_break() {
                    break;
                }
            }
        });
        Ok(())
    }

    /// Reads the first row, if there is one.
    pub(super) async fn first<T>(&self, read: impl Fn(&dyn Columns) -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        let mut found = None;
        self.each(|row| {
            found = Some(read(row)?);
            Ok(ControlFlow::Break(()))
        })
        .await?;
        Ok(found)
    }

    /// The number in the first column of the first row, if there is one.
    pub(super) async fn number(&self) -> Result<Option<i64>, StoreError> {
        Ok(self.first(|row| Ok(row.int(0)?)).await?.flatten())
    }

    /// The database's plan for the query.
    #[cfg(test)]
    pub(super) async fn plan(&self) -> Vec<String> {
        let sqlite = matches!(self.pool.db, Either::Sqlite(_));
        let mut explained = self.clone();
        explained.text = format!("{} {}", if sqlite { "EXPLAIN QUERY PLAN" } else { "EXPLAIN" }, self.text);
        let mut lines = Vec::new();
        let read = |row: &dyn Columns| {
            lines.push(row.word(if sqlite { 3 } else { 0 })?.to_owned());
            Ok(ControlFlow::Continue(()))
        };
        explained.each(read).await.unwrap();
        lines
    }
}
