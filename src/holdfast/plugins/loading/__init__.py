"""Parts of the plugin loader: where plugins are, how their code is loaded, and who watches while it is."""
