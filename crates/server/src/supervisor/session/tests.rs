//! Tests of sessions, with real shells.

mod life;
mod mixture;
mod oddities;
mod rig;
mod variables;
