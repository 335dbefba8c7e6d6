"""What a simulated run's messages tell about its clients' data, measured by attacks on its own data: `fibecfed audit RUN`."""
