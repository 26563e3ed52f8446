//! `mounts.jsonl`: what is mounted where, in the namespace of the first process.

use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;
use crate::wanted::Mounts;

/// Mounts that are believed.
const MAX: usize = 100_000;

pub(super) struct Layout(Mounts);

impl Artefact for Layout {
    const NAME: &'static str = "mounts";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Mounts::ask(known).map(Self)
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let Some(init) = ground.system.variables.init_task else {
            return Err(Stop::Start("the kernel has no symbol init_task".to_owned()));
        };
        let mut result = Ok(());
        let walked = mounts::walk(ground.system, &self.0, init, MAX, &mut |found| {
            let mut row = Row::at(found.address);
            row.put("linux.mount.source", found.source);
            row.put("linux.mount.path", found.path);
            row.put("linux.mount.type", found.kind);
            if result.is_ok() {
                result = rows.add(&row);
            }
        });
        walked.map_err(|error| Stop::Start(base::log::chain(&error)))?;
        result
    }
}
