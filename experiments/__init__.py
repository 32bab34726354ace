"""Programs: build a configuration, consume `jaxcnn.train.fit`, write the run's folder."""
