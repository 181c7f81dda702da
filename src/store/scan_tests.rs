//! Which index serves which question.
