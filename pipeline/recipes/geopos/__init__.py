"""GeoPos (2401.01951): its experiments. The paper states neither networks nor lengths: all of that is our choice."""
