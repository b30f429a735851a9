//! `berth:host/sql`: Postgres in the granted schemas, as a role of the plugin's own.

use wasmtime::component::{HasData, Linker, Resource};

use super::bindings::berth::host::sql::{self, Error, Rows, Value};
use crate::runtime::instance::Ctx;

/// A transaction of a guest.
#[derive(Debug)]
pub struct Transaction {}

struct SqlView<'a> {
    _ctx: &'a mut Ctx,
}

impl sql::Host for SqlView<'_> {
    async fn query(
        &mut self,
        _statement: String,
        _parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<Rows, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn execute(
        &mut self,
        _statement: String,
        _parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(Err(Error::Unavailable))
    }
}

impl sql::HostTransaction for SqlView<'_> {
    async fn begin(&mut self) -> wasmtime::Result<Result<Resource<Transaction>, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn query(
        &mut self,
        _transaction: Resource<Transaction>,
        _statement: String,
        _parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<Rows, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn execute(
        &mut self,
        _transaction: Resource<Transaction>,
        _statement: String,
        _parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn commit(&mut self, _transaction: Resource<Transaction>) -> wasmtime::Result<Result<(), Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn rollback(&mut self, _transaction: Resource<Transaction>) -> wasmtime::Result<Result<(), Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn drop(&mut self, _transaction: Resource<Transaction>) -> wasmtime::Result<()> {
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
    sql::add_to_linker::<_, HasSql>(linker, |ctx: &mut Ctx| SqlView { _ctx: ctx })
}
