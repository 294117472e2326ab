//! Every sum over tokens, gradients or devices ends here, in one fixed order.
//!
//! What crosses launches is combined by these functions alone: shares of columns, Gram matrices, losses, norms. A run over
//! several devices, one process for each, puts its exchange here: gather the others' shares, add them in the order of the ranks.

use super::launch::{Layout, arguments, int};
use super::layers::SUM_ROWS;
use super::memory::{Element, Matrix, Rows, RowsMut};
use super::split::Split;
use super::{Cuda, CudaError};

/// Columns of a product on the way to an energy: few of them skip more of the matrix, many multiply faster.
const ENERGY_COLUMNS: usize = 1024;

impl Cuda {
    /// `total += shares[0] + shares[1] + ...`; total is `[1, cols]`, shares `[shares, cols]`.
    pub(super) fn add_shares(&self, total: RowsMut<'_, f32>, shares: Rows<'_, f32>) -> Result<(), CudaError> {
        let (rows, cols) = shares.dim();
        assert_eq!(total.dim(), (1, cols), "shares of one row");
        let layout = Layout { grid: [cols.div_ceil(256), 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        let arguments = arguments![&total, shares, rows as i64, int(cols), int(rows), 1];
        self.run_for::<f32>("add", "column_sum", layout, arguments)
    }

    /// `total += the sum of each column of x`, 64 rows at a time and then the shares in order: the gradient of a bias.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If total is not `[1, cols]`.
    pub fn column_sum<T: Element>(&self, total: RowsMut<'_, f32>, x: Rows<'_, T>) -> Result<(), CudaError> {
        let (rows, cols) = x.dim();
        // A grid has no more than 65535 blocks in y; a share that has more rows is still a function of their number alone.
        let rows_each = SUM_ROWS.max(rows.div_ceil(32_768));
        let shares = self.room::<f32>((rows.div_ceil(rows_each), cols))?;
        let layout =
            Layout { grid: [cols.div_ceil(256), shares.dim().0, 1], block: [256, 1, 1], shared_bytes: 0 };
        let arguments = arguments![&shares, x, rows as i64, int(cols), int(rows_each), 0];
        self.run_for::<T>("add", "column_sum", layout, arguments)?;
        self.add_shares(total, shares.view())
    }

    /// `total += the sum of all squares of x`, in f64; total is one number.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If total is not one number.
    pub fn add_squares(&self, total: RowsMut<'_, f64>, x: Rows<'_, f32>) -> Result<(), CudaError> {
        let shares = self.room::<f64>((1, x.count().div_ceil(32_768)))?;
        let layout = Layout { grid: [shares.dim().1, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        self.run_for::<f32>("add", "sum_of_squares", layout, arguments![&shares, x, x.count() as i64])?;
        self.add_total(total, shares.view())
    }

    /// `total += the sum of all shares`; total is one number.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If total is not one number.
    pub fn add_total(&self, total: RowsMut<'_, f64>, shares: Rows<'_, f64>) -> Result<(), CudaError> {
        assert_eq!(total.dim(), (1, 1), "a total is one number");
        let layout = Layout { grid: [1, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        self.run_for::<f32>("add", "total", layout, arguments![&total, shares, shares.count() as i64])
    }

    /// Copies the upper triangle of a Gram matrix onto the lower one: what ends its summation.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If it is not square.
    pub fn mirror(&self, gram: &mut Matrix<f32>) -> Result<(), CudaError> {
        let (n, cols) = gram.dim();
        assert_eq!(n, cols, "a Gram matrix is square");
        self.run(("gram", None), "mirror", Layout::squares(n, n), arguments![&*gram, int(n)])
    }

    /// The diagonal of a square matrix, on the host.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If it is not square.
    pub fn diagonal(&self, gram: Rows<'_, f32>) -> Result<Vec<f32>, CudaError> {
        let (n, cols) = gram.dim();
        assert_eq!(n, cols, "a diagonal is of a square");
        let out = self.room((1, n))?;
        self.run(("gram", None), "diagonal", Layout::each(n), arguments![&out, gram, int(n)])?;
        self.download_items(out.view())
    }

    /// Whether every number is finite.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    pub fn is_finite(&self, x: Rows<'_, f32>) -> Result<bool, CudaError> {
        Ok(self.sum_of_squares(x)?.is_finite()) // no square of an f32 is too large for f64
    }

    /// The sum of all squares of x, on the host.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    pub fn sum_of_squares(&self, x: Rows<'_, f32>) -> Result<f64, CudaError> {
        self.summed(|total| self.add_squares(total, x))
    }

    /// `tr(x h xᵀ)`: the sum over the rows of x `[rows, n]` of their squares in the symmetric metric h `[n, n]`. Each product is that of
    /// [split](Self::split) matrices, their sum f64.
    ///
    /// By blocks on the diagonal of h and twice those above it.
    ///
    /// # Errors
    /// If memory is short, a launch fails or the library refuses.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn energy(&self, x: Rows<'_, f32>, h: &Split) -> Result<f64, CudaError> {
        let (rows, n) = x.dim();
        assert_eq!(h.dim(), (n, n), "the metric is square in the columns");
        let out = self.room::<f32>((rows, ENERGY_COLUMNS.min(n)))?;
        let parts = self.split(x)?;
        let shares = self.room::<f64>((n.div_ceil(ENERGY_COLUMNS), rows.div_ceil(16)))?;
        let layout = Layout { grid: [shares.dim().1, 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        for (i, from) in (0..n).step_by(ENERGY_COLUMNS).enumerate() {
            let to = n.min(from + ENERGY_COLUMNS);
            let here = Rows::<f32>::at(out.address(), (rows, to - from));
            let columns = here.columns(0, to - from);
            self.add_split_product(columns, (1.0, 0.0), (&parts, from..to), (h, from..to, from..to))?;
            self.add_split_product(columns, (2.0, 1.0), (&parts, 0..from), (h, 0..from, from..to))?;
            let share = shares.view().rows(i, i + 1);
            let arguments = arguments![share, x, here, int(rows), int(n), int(from), int(to - from)];
            self.run(("descent", None), "row_products", layout, arguments)?;
        }
        self.summed(|total| self.add_total(total, shares.view()))
    }

    /// One number that starts at 0, on the host.
    fn summed(&self, add: impl FnOnce(RowsMut<'_, f64>) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let mut total = self.zeros::<f64>((1, 1))?;
        add(total.view_mut())?;
        Ok(self.download_items(total.view())?.iter().sum())
    }
}
