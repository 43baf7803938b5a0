//! `afar rm`: forgets jobs that have ended.

use crate::args::RmArgs;
use crate::commands::{block_on, for_each_job};
use crate::console::{Verbosity, say};
use crate::exit::Exit;

/// Forgets each of the jobs.
pub(crate) fn cmd_rm(args: &RmArgs) -> Exit {
    let verbose = args.connect.verbosity() >= Verbosity::Verbose;
    block_on(for_each_job(&args.jobs.jobs, &args.connect, async |session, job| {
        let id = session.remove(&job).await?;
        if verbose {
            say(&format!("{}/{id}: is forgotten", session.target()));
        }
        Ok(())
    }))
}
