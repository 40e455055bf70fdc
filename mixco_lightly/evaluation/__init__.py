"""What is measured: frozen features, linear probes and nearest neighbours."""
