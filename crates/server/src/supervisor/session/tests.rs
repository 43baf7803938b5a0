//! Tests of sessions, with real shells.

mod life;
mod oddities;
mod rig;
mod variables;
