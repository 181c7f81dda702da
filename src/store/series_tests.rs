//! Sums over minutes, hours and days.
