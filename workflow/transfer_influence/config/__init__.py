"""What a study is: typed settings, and one clear sentence for every mistake in them."""
