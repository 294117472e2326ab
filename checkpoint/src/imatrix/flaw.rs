/// How an importance matrix contradicts itself or another, or holds what is no sum of squares.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Flaw {
    #[error("it has no entries")]
    NoEntries,
    #[error("it ends within {what}, at byte {at} of {len}")]
    Ends { what: String, at: usize, len: usize },
    #[error("its {what} is {value}")]
    Count { what: String, value: i64 },
    #[error("the name of entry {number} is no text")]
    NoName { number: usize },
    #[error("two entries are called `{name}`")]
    Duplicate { name: String },
    #[error("{bytes} bytes follow what it is made of")]
    Trailing { bytes: usize },
    #[error("`{name}` has {sums} sums and {counts} counts")]
    Shape { name: String, sums: usize, counts: usize },
    #[error("`{name}` has {has} and no {lacks}")]
    Half { name: String, has: &'static str, lacks: &'static str },
    #[error("`{name}` is stored as {dtype}, not as f32")]
    Type { name: String, dtype: String },
    #[error("sum {place} of `{name}` is {value}: a sum of squares is finite and not negative")]
    NoSum { name: String, place: usize, value: String },
    #[error("count {place} of `{name}` is {value}: a count is finite and not negative")]
    NoCount { name: String, place: usize, value: String },
    #[error(
        "`{name}` has {} sums and {} counts here, {} and {} in the other",
        own[0], own[1], others[0], others[1]
    )]
    Mismatch { name: String, own: [usize; 2], others: [usize; 2] },
}
