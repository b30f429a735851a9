#![doc = include_str!("../README.md")]

pub mod admit;
pub mod body;
pub mod caps;
pub mod config;
pub mod dispatch;
pub mod error;
pub mod gate;
pub mod grants;
pub mod health;
pub mod listen;
pub mod metrics;
pub mod respond;
pub mod route;
pub mod runtime;
pub mod serve;
pub mod state;
