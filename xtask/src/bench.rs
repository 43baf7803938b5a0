//! `cargo xtask bench`: placeholder while the rest compiles.
use crate::failure::Result;
use crate::workspace::Workspace;
pub(crate) fn run(_workspace: &Workspace, _arguments: &[String]) -> Result<()> {
    Ok(())
}
