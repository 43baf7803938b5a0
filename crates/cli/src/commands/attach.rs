//! `afar attach`: goes on with a job.

use afar_client::Attachment;

use crate::args::AttachArgs;
use crate::commands::{FoundJob, job_name};
use crate::exit::Exit;
use crate::run::{Leaving, RunOptions};

/// Goes on with the job and ends as it does.
pub(crate) fn cmd_attach(args: AttachArgs) -> Exit {
    let found = match FoundJob::find(&args.job.job, &args.connect) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let options = RunOptions {
        // Also one that can only say "end": without `-n` that is what it says to the job.
        stdin: !args.no_stdin && !args.watch,
        json: args.json,
        result: args.result.result,
        verbosity: args.connect.verbosity(),
        argv: Vec::new(),
        // It was there before us, and whoever only came to look at it does not end it.
        leaving: Leaving::Returns,
        job_name: job_name(&found.target, &args.connect),
        escape: args.escape.escape,
    };
    let job = found.job.clone();
    found.show(if args.watch { Attachment::watch(job) } else { Attachment::take(job) }, options)
}
