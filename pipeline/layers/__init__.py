"""Building blocks with parameters or fixed filters. They know no network, loss or data set."""
