"""What every operator shares: dispatch, launching, registration."""
