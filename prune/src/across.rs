//! How many units each of some layers keeps, where they may keep different numbers.

/// Shares `total` units out among layers of `units` units each, of which whole steps go: always those that cost least next, and a
/// step stays in every layer. `costs` says of every layer what is lost with each unit in the order in which they go.
///
/// Where costs rise within a layer, as they do when the least needed goes first, no other shares cost less together.
///
/// # Panics
/// If a layer's costs are too few, or the total is not whole steps, from one for each layer to all that there are.
pub fn share_out(costs: &[Vec<f64>], units: usize, step: usize, total: usize) -> Vec<usize> {
    let whole = units / step * step;
    assert!(total.is_multiple_of(step), "{total} units are not whole steps of {step}");
    assert!(
        (costs.len() * step..=costs.len() * whole).contains(&total),
        "{total} units of {} layers of {whole}",
        costs.len()
    );
    let mut kept = vec![whole; costs.len()];
    // The last step of a layer is not for sale.
    let price = |costs: &[f64], kept: usize| -> f64 {
        let gone = units - kept;
        if kept > step { costs[gone..gone + step].iter().sum() } else { f64::INFINITY }
    };
    let mut prices: Vec<f64> = costs.iter().map(|costs| price(costs, whole)).collect();
    for _ in 0..(whole * costs.len() - total) / step {
        let cheapest =
            (0..prices.len()).fold(0, |best, at| if prices[at] < prices[best] { at } else { best });
        kept[cheapest] -= step;
        prices[cheapest] = price(&costs[cheapest], kept[cheapest]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every way to share out, and the least that any costs.
    fn least(costs: &[Vec<f64>], units: usize, step: usize, total: usize) -> f64 {
        let [first, rest @ ..] = costs else { return if total == 0 { 0.0 } else { f64::INFINITY } };
        let kept = (step..=units / step * step).step_by(step).filter(|&kept| kept <= total);
        let cost =
            |kept: usize| first[..units - kept].iter().sum::<f64>() + least(rest, units, step, total - kept);
        kept.map(cost).fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn no_other_shares_cost_less(
            seeds in prop::collection::vec(prop::collection::vec(0u32..1000, 7), 1..4),
            step in 1usize..4,
            share in 0.0f64..1.0,
        ) {
            let rising = |seed: &Vec<u32>| {
                let mut costs: Vec<f64> = seed.iter().map(|&x| f64::from(x)).collect();
                costs.sort_by(f64::total_cmp);
                costs
            };
            let costs: Vec<_> = seeds.iter().map(rising).collect();
            let (units, layers) = (7, costs.len());
            let steps = layers + (share * (layers * (units / step - 1)) as f64) as usize;
            let kept = share_out(&costs, units, step, steps * step);
            prop_assert_eq!(kept.iter().sum::<usize>(), steps * step);
            prop_assert!(kept.iter().all(|kept| kept.is_multiple_of(step) && *kept >= step));
            let cost: f64 = kept.iter().zip(&costs).map(|(&kept, costs)| costs[..units - kept].iter().sum::<f64>()).sum();
            prop_assert!(cost <= least(&costs, units, step, steps * step) + 1e-9);
        }
    }

    #[test]
    fn layers_that_cost_the_same_keep_as_many() {
        let costs = vec![vec![1.0, 2.0, 3.0, 4.0]; 3];
        assert_eq!(share_out(&costs, 4, 1, 6), [2, 2, 2]);
    }

    #[test]
    fn a_layer_whose_units_cost_nothing_keeps_one_step() {
        let costs = [vec![0.0; 8], vec![1.0; 8]];
        assert_eq!(share_out(&costs, 8, 2, 8), [2, 6]);
    }
}
