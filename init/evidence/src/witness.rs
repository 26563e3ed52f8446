//! A target that keeps the sums of what is saved there.

use std::io;
use std::path::PathBuf;

use vmcore::report;
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Ledger, Sent, Target, TargetError};

use crate::hex;
use crate::manifest::File;
use crate::sums::{FileSums, Sums};

/// A target, and what is known of its files.
#[expect(missing_debug_implementations, reason = "it holds any target")]
pub struct Witness {
    target: Box<dyn Target>,
    sums: Sums,
    /// What has its name, in the order in which it got it; whether that says incomplete.
    files: Vec<(Artifact, String, bool)>,
    /// What was begun.
    begun: Vec<Artifact>,
    /// Whether nothing is hashed.
    is_blind: bool,
}

impl Witness {
    /// Keeps the sums of what is saved to `target`.
    #[must_use]
    pub fn new(target: Box<dyn Target>) -> Self {
        Self { target, sums: Sums::default(), files: Vec::new(), begun: Vec::new(), is_blind: false }
    }

    /// The same, but nothing is hashed: nobody wants the sums.
    #[must_use]
    pub fn blind(target: Box<dyn Target>) -> Self {
        Self { is_blind: true, ..Self::new(target) }
    }

    /// The files that are there, with what is known of them.
    #[must_use]
    pub fn files(&self) -> Vec<File> {
        let sent = self.target.sent();
        let file = |(artifact, name, incomplete): &(Artifact, String, bool)| {
            let sums = self.sums.of(*artifact).unwrap_or_default();
            let mut file =
                File { incomplete: *incomplete, ..File::new(name.clone(), artifact.role(), &sums) };
            if file.sha256.is_none() {
                file.sha256 =
                    sent.iter().find(|sent| sent.artifact == *name).and_then(|sent| sent.sha256.clone());
            }
            file
        };
        self.files.iter().map(file).collect()
    }

    /// Keeps what was begun and did not come to its end, where it stays there anyway: a file that nobody
    /// names looks like one that was added.
    pub fn leave_rest(&mut self) {
        if self.is_stream() {
            return;
        }
        let has_name = |artifact: &Artifact| self.files.iter().any(|(other, ..)| other == artifact);
        let rest: Vec<_> = self.begun.iter().copied().filter(|artifact| !has_name(artifact)).collect();
        for artifact in rest {
            self.leave(artifact);
        }
    }

    fn end(&mut self, artifact: Artifact, name: String, incomplete: bool) {
        let Self { target, sums, files, .. } = self;
        sums.complete(artifact, |offset, buffer| target.read_back(artifact, offset, buffer));
        files.retain(|(other, ..)| *other != artifact);
        files.push((artifact, name, incomplete));
    }
}

impl Target for Witness {
    fn location(&self) -> String {
        self.target.location()
    }

    fn directory(&self) -> Option<PathBuf> {
        self.target.directory()
    }

    fn ledger(&self) -> &Ledger {
        self.target.ledger()
    }

    fn end_of_loop(&self) -> String {
        self.target.end_of_loop()
    }

    fn room(&self) -> Option<u64> {
        self.target.room()
    }

    fn is_stream(&self) -> bool {
        self.target.is_stream()
    }

    fn expect(&mut self, bytes: u64) {
        self.target.expect(bytes);
    }

    /// With the sums, where the target itself has none.
    fn sent(&self) -> Vec<Sent> {
        let with_sums = |mut sent: Sent| {
            let artifact = Artifact::ALL.into_iter().find(|artifact| artifact.name() == sent.artifact);
            let Some(sums) = artifact.and_then(|artifact| self.sums.of(artifact)) else { return sent };
            if sent.bytes == 0 {
                sent.bytes = sums.bytes;
            }
            if sent.sha256.is_none() {
                sent.sha256 = sums.whole.map(|sum| hex(&sum));
            }
            if sent.sha256.is_none() {
                sent.pieces = pieces(&sums);
            }
            sent
        };
        self.target.sent().into_iter().map(with_sums).filter(|sent| sent.bytes > 0).collect()
    }

    fn remarks(&self) -> Vec<String> {
        self.target.remarks()
    }

    fn detours(&self) -> Vec<String> {
        self.target.detours()
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        let sink = self.target.create(artifact)?;
        self.files.retain(|(other, ..)| *other != artifact);
        self.begun.retain(|other| *other != artifact);
        self.begun.push(artifact);
        Ok(match artifact {
            _ if self.is_blind => sink,
            Artifact::Vmcore if self.target.is_stream() => self.sums.follow_pieces(artifact, sink),
            _ => self.sums.follow(artifact, sink),
        })
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.target.publish(artifact)?;
        self.end(artifact, self.target.name_of(artifact).to_owned(), false);
        Ok(())
    }

    fn name_of(&self, artifact: Artifact) -> &'static str {
        self.target.name_of(artifact)
    }

    fn leave(&mut self, artifact: Artifact) -> Option<String> {
        let name = self.target.leave(artifact)?;
        self.end(artifact, name.clone(), true);
        Some(name)
    }

    fn read_back(&mut self, artifact: Artifact, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.target.read_back(artifact, offset, buffer)
    }

    fn retire(&mut self) -> Result<(), TargetError> {
        self.target.retire()
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        self.target.close()
    }
}

/// The pieces of a file whose sums are known, all of them or none.
fn pieces(sums: &FileSums) -> Vec<report::Piece> {
    let piece = |piece: &crate::sums::Piece| {
        Some(report::Piece { offset: piece.offset, bytes: piece.bytes, sha256: hex(&piece.sum?) })
    };
    sums.pieces.iter().map(piece).collect::<Option<_>>().unwrap_or_default()
}
