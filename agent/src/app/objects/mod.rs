//! Objects: finding, reading, making, changing and destroying them.
//!
//! | Module | Is |
//! |---|---|
//! | [`attributes`] | which attributes there are, and who may change them |
//! | [`template`] | from a template to a whole object |
//! | [`catalogue`] | what lies in each token, by handle, label and id |
//! | [`view`] | one object as an application sees it |
//! | [`session`] | objects that live as long as a session |
//! | [`find`], [`make`], [`change`] | what applications ask |
//!
//! A secret value is in secret memory, or nowhere: attributes and templates here hold public values only.

pub mod attributes;
pub mod catalogue;
pub mod change;
pub mod ec;
pub mod find;
pub mod make;
pub mod session;
pub mod template;
pub mod view;
