//! What stands in the way of a target.

/// What stands in the way of a target.
pub(super) struct Obstacle {
    pub(super) id: &'static str,
    pub(super) found: String,
    pub(super) remedy: String,
    /// Whether nothing can be saved there.
    pub(super) is_fatal: bool,
}
