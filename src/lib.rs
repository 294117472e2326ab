//! attar
