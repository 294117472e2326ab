//! Features of the residual stream: which go, and what norms are multiplied by when they have.
//!
//! A norm divides by the root mean square of all features. When some go the mean is over others, and what stays would come out
//! larger or smaller than it did: a factor on the norm's weight undoes that as well as one number can.

use crate::{Error, KeepList};
use attar_model::{Block, ModelConfig, Role, Weights, Windows, embed};
use ndarray::{Array1, ArrayView2, Axis};
use std::collections::BTreeMap;

/// Who is shown what a norm reads, by the norm's role and layer.
type Observer<'a> = dyn FnMut(Role, Option<usize>, ArrayView2<'_, f32>) + 'a;

/// Runs the model over a text, block by block, and shows `observe` what every norm over the residual stream reads, with the norm's
/// role and layer, `[tokens, hidden_size]`, some windows at a time.
///
/// # Errors
/// Weights that cannot be loaded, a token outside the vocabulary.
fn each_norm(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    observe: &mut Observer<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<(), Error> {
    let ctx = windows.ctx();
    let mut hidden = embed(config, weights, windows.tokens())?;
    let chunk = (2048 / ctx).max(1) * ctx;
    for layer in 0..config.num_hidden_layers {
        let block = Block::load(config, layer, weights)?;
        for mut hidden in hidden.axis_chunks_iter_mut(Axis(0), chunk) {
            let mut at = |role: Role, x: ArrayView2<'_, f32>| {
                if config.tensor(role, Some(layer)).is_some() {
                    observe(role, Some(layer), x);
                }
            };
            at(Role::AttnNorm, hidden.view());
            let attn_out = block.attn_out(block.attn_in(hidden.view()).view(), ctx);
            at(Role::PostAttnNorm, block.linear(Role::O).apply(attn_out.view()).view());
            block.add_attn(hidden.view_mut(), attn_out.view());
            at(Role::MlpNorm, hidden.view());
            let mlp_in = block.mlp_in(hidden.view());
            if let Some(experts) = block.experts() {
                experts.add_to(hidden, mlp_in.view());
                continue;
            }
            let mid = block.mlp_mid(mlp_in.view());
            at(Role::PostMlpNorm, block.linear(Role::Down).apply(mid.view()).view());
            block.add_mlp(hidden, mid.view());
        }
        progress(layer);
    }
    for hidden in hidden.axis_chunks_iter(Axis(0), chunk) {
        observe(Role::FinalNorm, None, hidden);
    }
    Ok(())
}

/// Scores the features of the residual stream, `[hidden_size]`, by how long each is in what norms give: for every norm the mean over
/// a window's tokens, squared, summed over windows; the roots of that summed over norms.
///
/// # Errors
/// Weights that cannot be loaded, a token outside the vocabulary.
///
/// # Source
/// Muralidharan et al., arXiv:2407.14679, section 2.2, of what every norm gives.
pub fn scores(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, Error> {
    let ctx = windows.ctx();
    let mut levels: BTreeMap<(Role, Option<usize>), Array1<f64>> = BTreeMap::new();
    let mut failed = None;
    let mut norms = BTreeMap::new();
    let mut observe = |role: Role, layer: Option<usize>, x: ArrayView2<'_, f32>| {
        let key = (role, layer);
        if let std::collections::btree_map::Entry::Vacant(entry) = norms.entry(key) {
            let spec = config.tensor(role, layer);
            match spec.map(|spec| attar_model::Norm::load(config, &spec, weights)) {
                Some(Ok(norm)) => {
                    entry.insert(norm);
                }
                Some(Err(error)) => failed = Some(error),
                None => {}
            }
        }
        let Some(norm) = norms.get(&key) else { return };
        let normed = norm.apply(x);
        let level = levels.entry(key).or_insert_with(|| Array1::zeros(config.hidden_size));
        for window in normed.axis_chunks_iter(Axis(0), ctx) {
            let mut sum = Array1::<f64>::zeros(config.hidden_size);
            for row in window.outer_iter() {
                sum.zip_mut_with(&row, |sum, &x| *sum += f64::from(x.abs()));
            }
            level.zip_mut_with(&sum, |level, sum| *level += (sum / ctx as f64).powi(2));
        }
    };
    each_norm(config, weights, windows, &mut observe, progress)?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let mut scores = vec![0.0; config.hidden_size];
    for level in levels.values() {
        scores.iter_mut().zip(level).for_each(|(score, level)| *score += level.sqrt());
    }
    Ok(scores)
}

/// For each norm the factor that keeps what it gives of the features that stay closest to what it gave: the mean over tokens of the
/// root mean square of those features over that of all.
///
/// For one token the factor is exact. Weighed by what a token's kept features come to it would be the least-squares answer; the
/// plain mean lets no token with a few huge features decide for all.
///
/// # Errors
/// Weights that cannot be loaded, a token outside the vocabulary.
pub fn norm_factors(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    keep: &KeepList,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<(Role, Option<usize>), f32>, Error> {
    let mut sums: BTreeMap<(Role, Option<usize>), (f64, usize)> = BTreeMap::new();
    let mut observe = |role: Role, layer: Option<usize>, x: ArrayView2<'_, f32>| {
        let (sum, tokens) = sums.entry((role, layer)).or_default();
        *sum += ratio_sum(x, keep);
        *tokens += x.nrows();
    };
    each_norm(config, weights, windows, &mut observe, progress)?;
    Ok(sums.into_iter().map(|(key, (sum, tokens))| (key, (sum / tokens.max(1) as f64) as f32)).collect())
}

/// The sum over tokens of the root mean square of the kept features over that of all.
fn ratio_sum(x: ArrayView2<'_, f32>, keep: &KeepList) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let ratio = |row: ndarray::ArrayView1<'_, f32>| {
        let all = row.iter().map(|&x| square(x)).sum::<f64>() / row.len() as f64;
        let kept = keep.kept().iter().map(|&f| square(row[f])).sum::<f64>() / keep.len() as f64;
        if all > 0.0 { (kept / all).sqrt() } else { 1.0 }
    };
    x.outer_iter().map(ratio).sum()
}
