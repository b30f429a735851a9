//! `berth:host/sql`: Postgres in the granted schemas, as a role of the plugin's own.
//!
//! A plugin can do there what its role may ([`crate::postgres::roles`]): everything in its own schema, what is granted in
//! the host's. It can't become another role, keep a connection, or leave anything on one for the next call: transactions
//! are a resource, statements for the session are denied, and a connection is cleaned before it is lent again. Every
//! statement has a deadline that the host keeps, every result and every parameter a limit.
//!
//! Deliberately absent: `COPY`, cursors, `LISTEN`, more than one statement in a call.

mod errors;
mod lexer;
mod numeric;
mod pool;
mod relay;
mod run;
mod transaction;
mod values;

use std::sync::Arc;
use std::time::Instant;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::bindings::berth::host::sql::{self, Error, Rows, Value};
use crate::runtime::instance::Ctx;
pub use pool::Pool;
use run::Ask;
pub(crate) use transaction::IDLE;
pub use transaction::{SqlCtx, Transaction};

/// What the functions of this interface see of a store.
struct SqlView<'a> {
    pool: Option<Arc<Pool>>,
    ctx: &'a mut SqlCtx,
    table: &'a mut ResourceTable,
}

/// Count a call.
fn counted<T>(pool: &Pool, since: Instant, result: Result<T, Error>) -> Result<T, Error> {
    let label = result.as_ref().err().map_or("ok", errors::label);
    pool.metrics.called(label, since.elapsed());
    result
}

impl SqlView<'_> {
    async fn single(
        &mut self,
        statement: String,
        parameters: Vec<Value>,
        rows: bool,
    ) -> Result<run::Answer, Error> {
        let (pool, since) = (self.pool.as_ref().ok_or(Error::Unavailable)?, Instant::now());
        let result = match Ask::new(statement, parameters, rows) {
            Ok(ask) => transaction::single(pool, ask).await,
            Err(error) => Err(error),
        };
        counted(pool, since, result)
    }

    async fn within(
        &mut self,
        transaction: &Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
        rows: bool,
    ) -> wasmtime::Result<Result<run::Answer, Error>> {
        let transaction = self.table.get(transaction)?;
        let Some(pool) = &self.pool else {
            return Ok(Err(Error::Unavailable));
        };
        let since = Instant::now();
        let result = match Ask::new(statement, parameters, rows) {
            Ok(ask) => transaction.run(ask).await,
            Err(error) => Err(error),
        };
        Ok(counted(pool, since, result))
    }

    async fn end(
        &mut self,
        transaction: &Resource<Transaction>,
        keep: bool,
    ) -> wasmtime::Result<Result<(), Error>> {
        let transaction = self.table.get(transaction)?;
        let Some(pool) = &self.pool else {
            return Ok(Err(Error::Unavailable));
        };
        let since = Instant::now();
        Ok(counted(pool, since, transaction.end(keep).await))
    }
}

impl sql::Host for SqlView<'_> {
    async fn query(
        &mut self,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<Rows, Error>> {
        Ok(self
            .single(statement, parameters, true)
            .await
            .map(|answer| answer.rows))
    }

    async fn execute(
        &mut self,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(self
            .single(statement, parameters, false)
            .await
            .map(|answer| answer.touched))
    }
}

impl sql::HostTransaction for SqlView<'_> {
    async fn begin(&mut self) -> wasmtime::Result<Result<Resource<Transaction>, Error>> {
        let Some(pool) = &self.pool else {
            return Ok(Err(Error::Unavailable));
        };
        let since = Instant::now();
        match counted(pool, since, Transaction::begin(pool, self.ctx).await) {
            Ok(transaction) => Ok(Ok(self.table.push(transaction)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn query(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<Rows, Error>> {
        let result = self.within(&transaction, statement, parameters, true).await?;
        Ok(result.map(|answer| answer.rows))
    }

    async fn execute(
        &mut self,
        transaction: Resource<Transaction>,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let result = self.within(&transaction, statement, parameters, false).await?;
        Ok(result.map(|answer| answer.touched))
    }

    async fn commit(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<Result<(), Error>> {
        self.end(&transaction, true).await
    }

    async fn rollback(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<Result<(), Error>> {
        self.end(&transaction, false).await
    }

    async fn drop(&mut self, transaction: Resource<Transaction>) -> wasmtime::Result<()> {
        // Its task sees that it is gone, and rolls back unless it has ended.
        self.table.delete(transaction)?;
        Ok(())
    }
}

struct HasSql;

impl HasData for HasSql {
    type Data<'a> = SqlView<'a>;
}

/// Link the interface.
///
/// # Errors
/// It is linked already.
pub fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    sql::add_to_linker::<_, HasSql>(linker, |ctx: &mut Ctx| {
        let pool = ctx.origin().plugin.sql.clone();
        let (ctx, table) = ctx.sql();
        SqlView { pool, ctx, table }
    })
}
